"""Attention in matrix products and softmax, with and without a cache.

With a cache, the keys and values of this step are never written into it by the graph: without an update in
place that would copy the whole cache each step. Scores against the past and against the step itself are
two products, joined for one softmax:

    p = softmax([q K_past^T, q K_new^T] / sqrt(D) + mask)
    y = p_past V_past + p_new V_new

Shapes: B rows, T tokens, S positions of cache, G query heads on each of the kv_heads, D the head size.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from qwen2vl_rt.graph_format import PAST_LENGTH, TOKENS, cache_tensors, cached_keys
from qwen2vl_rt.lowering.graph import constant, integers, op, producers

MASKED = -1e30  # added to scores that must not count; exp of it is exactly 0


def plain_attention(graph: GraphProto, head_dim: int, wanted: int) -> dict[str, list[NodeProto]]:
    """Replacements of unmasked attention over [N, heads, P, D].

    Its softmax stays in the graph's own type: TensorRT fuses exactly this chain into a kernel that never
    stores the scores (and accumulates in float32), and casts within would keep it from doing so.
    """
    scale = constant(graph, "primitive.attention_scale", 1 / math.sqrt(head_dim), wanted)
    replacements = {}
    for node in graph.node:
        if node.op_type == "Attention":
            name, (q, k, v) = node.name, node.input[:3]
            replacements[name] = [
                op("Mul", f"{name}.q", q, scale),
                op("Transpose", f"{name}.k", k, perm=[0, 1, 3, 2]),
                op("MatMul", f"{name}.logits", f"{name}.q", f"{name}.k"),  # [N, heads, P, P]
                op("Softmax", f"{name}.weights", f"{name}.logits", axis=-1),
                op("MatMul", name, f"{name}.weights", v),
            ]
    return replacements


def cached_attention(
    graph: GraphProto, heads: int, kv_heads: int, head_dim: int, wanted: int
) -> dict[str, list[NodeProto]]:
    """Replacements of TensorScatter and causal Attention; renames the graph's cache outputs."""
    made_by = producers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    shared = _masks(graph)
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    new_names = {names.present: names.new for names in cache_tensors(len(attentions))}
    for node in attentions:
        keys, values = (made_by[node.input[index]] for index in (1, 2))
        nodes = _layer(graph, node, keys, values, (heads, kv_heads, head_dim), wanted)
        replacements[node.name] = [*shared, *nodes]
        shared = []
        for update in (keys, values):
            new = new_names[update.output[0]]
            replacements[update.name] = [op("Identity", new, update.input[1])]
            _rename_output(graph, update.output[0], new)
    return replacements


def _masks(graph: GraphProto) -> list[NodeProto]:
    """What all layers share: which columns of the past [B, 1, 1, 1, S] and of the step [T, T] count."""
    zero = constant(graph, "primitive.zero", 0, TensorProto.INT64)
    one = constant(graph, "primitive.step", 1, TensorProto.INT64)
    return [
        op("Shape", "mask.capacity", cached_keys(0).past, start=2, end=3),
        op("Squeeze", "mask.positions", "mask.capacity", integers(graph, 0)),
        op("Range", "mask.columns", zero, "mask.positions", one),  # [S]
        op("Unsqueeze", "mask.filled", PAST_LENGTH, integers(graph, 1, 2, 3, 4)),  # [B, 1, 1, 1, 1]
        op("Less", "mask.past", "mask.columns", "mask.filled"),  # [B, 1, 1, 1, S]
        op("Squeeze", "mask.tokens", TOKENS, integers(graph, 0)),
        op("Range", "mask.rows", zero, "mask.tokens", one),  # [T]
        op("Unsqueeze", "mask.queries", "mask.rows", integers(graph, 1)),  # [T, 1]
        op("LessOrEqual", "mask.step", "mask.rows", "mask.queries"),  # [T, T]
    ]


def _layer(
    graph: GraphProto,
    node: NodeProto,
    keys: NodeProto,
    values: NodeProto,
    sizes: tuple[int, int, int],
    wanted: int,
) -> list[NodeProto]:
    """One layer's attention; q, k, v and the result are [B, heads or kv_heads, T, D]."""
    name = node.name
    heads, kv_heads, head_dim = sizes
    group = heads // kv_heads
    (past_k, k), (past_v, v) = keys.input[:2], values.input[:2]
    scale = constant(graph, "primitive.attention_scale", 1 / math.sqrt(head_dim), wanted)
    by_group = integers(graph, 0, kv_heads, group, -1, head_dim)
    one_group = integers(graph, 0, kv_heads, 1, -1, head_dim)

    nodes = [
        op("Mul", f"{name}.q.scaled", node.input[0], scale),
        op("Reshape", f"{name}.q", f"{name}.q.scaled", by_group),  # [B, kv_heads, G, T, D]
    ]
    scores = []
    for part, source_k, source_v in (("past", past_k, past_v), ("step", k, v)):
        prefix = f"{name}.{part}"
        nodes += [
            op("Reshape", f"{prefix}.k", source_k, one_group),  # [B, kv_heads, 1, S or T, D]
            op("Reshape", f"{prefix}.v", source_v, one_group),
            op("Transpose", f"{prefix}.k.transposed", f"{prefix}.k", perm=[0, 1, 2, 4, 3]),
            op("MatMul", f"{prefix}.products", f"{name}.q", f"{prefix}.k.transposed"),
        ]
        product = f"{prefix}.products"
        if wanted != TensorProto.FLOAT:  # as the portable graph: the softmax in float32
            nodes.append(op("Cast", f"{prefix}.float", product, to=TensorProto.FLOAT))
            product = f"{prefix}.float"
        masked = constant(graph, "primitive.masked", MASKED, TensorProto.FLOAT)
        nodes.append(op("Where", f"{prefix}.scores", f"mask.{part}", product, masked))
        scores.append(f"{prefix}.scores")
    nodes += [
        op("Concat", f"{name}.joined", *scores, axis=-1),  # [B, kv_heads, G, T, S + T]
        op("Softmax", f"{name}.softmax", f"{name}.joined", axis=-1),
    ]
    weights = f"{name}.softmax"
    if wanted != TensorProto.FLOAT:
        nodes.append(op("Cast", f"{name}.softmax.narrow", weights, to=wanted))
        weights = f"{name}.softmax.narrow"
    ends = constant(graph, "primitive.end", [np.iinfo(np.int64).max], TensorProto.INT64)
    return [
        *nodes,
        op(
            "Slice", f"{name}.past.weights", weights, integers(graph, 0), "mask.capacity", integers(graph, -1)
        ),
        op("Slice", f"{name}.step.weights", weights, "mask.capacity", ends, integers(graph, -1)),
        op("MatMul", f"{name}.past.result", f"{name}.past.weights", f"{name}.past.v"),
        op("MatMul", f"{name}.step.result", f"{name}.step.weights", f"{name}.step.v"),
        op("Add", f"{name}.result", f"{name}.past.result", f"{name}.step.result"),
        op("Reshape", name, f"{name}.result", integers(graph, 0, heads, -1, head_dim)),
    ]


def _rename_output(graph: GraphProto, old: str, new: str) -> None:
    """Call a cache output by its new name; its third axis now counts the step's tokens."""
    for value in graph.output:
        if value.name == old:
            shape = [
                dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
            ]
            shape[2] = "T"
            value.CopyFrom(helper.make_tensor_value_info(new, value.type.tensor_type.elem_type, shape))
