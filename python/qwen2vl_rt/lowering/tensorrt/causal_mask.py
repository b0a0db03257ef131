"""Causal attention over a cache with its mask in the graph.

TensorRT's parser ignores Attention's `nonpad_kv_seqlen` and aligns `is_causal` to the first position instead
of the newest. This form leaves nothing to either: token t of row b sees the cache's columns s with

    s <= past_length[b] + t

Where G query heads share a key/value head, TensorRT writes keys and values of the whole cache out for every
query head before it multiplies. Here the G heads are G times as many rows of one head's queries instead:
[B, kv_heads, G * T, D], and nothing is repeated but the mask's rows.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from qwen2vl_rt.graph_format import PAST_LENGTH, TOKENS
from qwen2vl_rt.lowering.graph import constant, drop_unread, integers, op, replace_nodes


def mask_attention(model: ModelProto, heads: int, kv_heads: int, head_dim: int, capacity: int) -> None:
    """Give each cached Attention of the decoder a boolean mask [B, 1, G * T, S] in place of its lengths.

    Args:
        model: the decoder, changed in place.
        heads: query heads, G on each of the kv_heads.
        kv_heads: key and value heads.
        head_dim: D, width of a head.
        capacity: S, the cache's positions.
    """
    graph = model.graph
    columns = constant(graph, "mask.columns", np.arange(capacity), TensorProto.INT64)  # [S]
    zero = constant(graph, "mask.zero", 0, TensorProto.INT64)
    one = constant(graph, "mask.one", 1, TensorProto.INT64)
    mask = [
        op("Squeeze", "mask.tokens", TOKENS, integers(graph, 0)),  # T
        op("Range", "mask.rows", zero, "mask.tokens", one),  # [T]
        op("Unsqueeze", "mask.past", PAST_LENGTH, integers(graph, 1)),  # [B, 1]
        op("Add", "mask.last", "mask.past", "mask.rows"),  # [B, T], the last column that each token sees
        op("Tile", "mask.of_heads", "mask.last", integers(graph, 1, heads // kv_heads)),  # [B, G * T]
        op("Unsqueeze", "mask.limits", "mask.of_heads", integers(graph, 1, 3)),  # [B, 1, G * T, 1]
        op("LessOrEqual", "mask", columns, "mask.limits"),  # [B, 1, G * T, S]
    ]
    replacements = {}
    for node in graph.node:
        if node.op_type == "Attention":
            name, (q, k, v) = node.name, node.input[:3]
            replacements[name] = [
                *([] if replacements else mask),
                op("Reshape", f"{name}.rows", q, integers(graph, 0, kv_heads, -1, head_dim)),
                op("Attention", f"{name}.of_rows", f"{name}.rows", k, v, "mask"),
                op("Reshape", name, f"{name}.of_rows", integers(graph, 0, heads, -1, head_dim)),
            ]
    replace_nodes(graph, replacements)
    drop_unread(graph)
