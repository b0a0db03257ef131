"""Cached attention as ONNX Runtime's GroupQueryAttention, whose cost follows the past, not the capacity.

The portable form, TensorScatter into the cache and Attention over all of it, computes scores for every
position that the cache could hold: at 512 past positions in a cache of 32,768 a hundred times the cost.
"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from qwen2vl_rt.lowering.graph import (
    CONTRIB_DOMAIN,
    constant,
    drop_unread,
    join_heads,
    op,
    producers,
    replace_nodes,
    split_heads,
    use_contrib_operators,
)

LAST, LONGEST = "cache.last", "cache.longest"
"""What GroupQueryAttention takes lengths as: each row's last valid position, int32 [B]; the longest length,
int32 [], on the CPU."""
VALID_LENGTH_INPUT = 6  # of Attention: nonpad_kv_seqlen, the positions that are valid after this step


def to_group_query_attention(model: ModelProto, heads: int, kv_heads: int) -> None:
    """Replace each TensorScatter pair and its Attention by one GroupQueryAttention, in place.

    GroupQueryAttention takes q, k, v as [B, T, heads * head_dim], appends k and v to the cache and attends
    causally, aligned to the newest position. With T > 1 over a past it takes one cache row a call (B = 1).
    """
    graph = model.graph
    made_by = producers(graph)
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    lengths = _cache_lengths(graph, attentions[0].input[VALID_LENGTH_INPUT])
    replacements: dict[str, list[NodeProto]] = {}
    for attention in attentions:
        name = attention.name
        keys, values = (made_by[attention.input[index]] for index in (1, 2))
        nodes = [] if replacements else lengths
        nodes += join_heads(graph, f"{name}.q", attention.input[0])
        nodes += join_heads(graph, f"{name}.k", keys.input[1])
        nodes += join_heads(graph, f"{name}.v", values.input[1])
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [
                    f"{name}.q",
                    f"{name}.k",
                    f"{name}.v",
                    keys.input[0],
                    values.input[0],
                    LAST,
                    LONGEST,
                ],
                [f"{name}.joined", keys.output[0], values.output[0]],
                f"{name}.group_query",
                domain=CONTRIB_DOMAIN,
                num_heads=heads,
                kv_num_heads=kv_heads,
            )
        )
        nodes += split_heads(graph, f"{name}.joined", attention.output[0], heads)
        replacements |= {name: nodes, keys.name: [], values.name: []}
    replace_nodes(graph, replacements)
    drop_unread(graph)
    use_contrib_operators(model)


def _cache_lengths(graph: GraphProto, valid_length: str) -> list[NodeProto]:
    """What all layers share: LAST and LONGEST."""
    one = constant(graph, "cache.one", 1, TensorProto.INT64)
    return [
        op("Sub", "cache.last_int64", valid_length, one),
        op("Cast", LAST, "cache.last_int64", to=TensorProto.INT32),
        op("ReduceMax", "cache.longest_int64", valid_length, keepdims=0),
        op("Cast", LONGEST, "cache.longest_int64", to=TensorProto.INT32),
    ]
