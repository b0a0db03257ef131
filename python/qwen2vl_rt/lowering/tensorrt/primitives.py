"""The graphs in operators of opset 20, for TensorRT 10.3 to 10.14 (JetPack 6), which lack newer ones.

RMSNormalization, RotaryEmbedding, Gelu, TensorScatter and Attention become the sums, products and softmax
that the ONNX standard defines them by. Attention is in `primitive_attention.py`.
"""

from __future__ import annotations

import math

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qwen2vl_rt.lowering.graph import attribute, constant, drop_unread, integers, op, replace_nodes
from qwen2vl_rt.lowering.tensorrt.primitive_attention import cached_attention, plain_attention
from qwen2vl_rt.number_formats import format_named

OPSET, OPSET_WITH_BLOCKS = (
    20,
    21,
)  # blocks of a DequantizeLinear, which TensorRT reads since 10.0, came with 21
IR_VERSION = 10  # of opset 21


def to_primitives(model: ModelProto, heads: int, kv_heads: int, head_dim: int, number_format: str) -> None:
    """Decompose every operator that is newer than opset 20, in place.

    The decoder's interface changes with it: no cache is written. `new_k.i` and `new_v.i` [B, kv_heads, T,
    head_dim] take the place of `present_k.i` and `present_v.i`, and the caller puts them into the cache at
    `past_length`.

    Args:
        model: a decoder or vision tower.
        heads: query heads.
        kv_heads: key and value heads; `heads` for the vision tower.
        head_dim: width of a head.
        number_format: "fp32", "bf16" or "fp16", the graph's floating-point type.
    """
    graph, wanted = model.graph, format_named(number_format).element_type
    decompose = {"RMSNormalization": _rms_norm, "RotaryEmbedding": _rotary, "Gelu": _gelu}
    replacements = {
        node.name: decompose[node.op_type](graph, node, wanted)
        for node in graph.node
        if node.op_type in decompose
    }
    if any(node.op_type == "TensorScatter" for node in graph.node):
        replacements |= cached_attention(graph, heads, kv_heads, head_dim, wanted)
    else:
        replacements |= plain_attention(graph, head_dim, wanted)
    replace_nodes(graph, replacements)
    drop_unread(graph)
    has_blocks = any(attribute(node, "block_size") for node in graph.node)
    model.opset_import[0].version = OPSET_WITH_BLOCKS if has_blocks else OPSET
    model.ir_version = IR_VERSION


def _rms_norm(graph: GraphProto, node: NodeProto, wanted: int) -> list[NodeProto]:
    """x / sqrt(mean(x^2) + epsilon) in float32, rounded, times the scale."""
    name, (x, scale) = node.name, node.input
    epsilon = constant(graph, "primitive.rms_epsilon", attribute(node, "epsilon"), TensorProto.FLOAT)
    nodes, wide = [], x
    if wanted != TensorProto.FLOAT:
        wide = f"{name}.input"
        nodes.append(op("Cast", wide, x, to=TensorProto.FLOAT))
    nodes += [
        op("Mul", f"{name}.squares", wide, wide),
        op("ReduceMean", f"{name}.mean", f"{name}.squares", integers(graph, -1), keepdims=1),
        op("Add", f"{name}.variance", f"{name}.mean", epsilon),
        op("Sqrt", f"{name}.deviation", f"{name}.variance"),
        op("Div", f"{name}.normalized", wide, f"{name}.deviation"),
    ]
    normalized = f"{name}.normalized"
    if wanted != TensorProto.FLOAT:
        nodes.append(op("Cast", f"{name}.rounded", normalized, to=wanted))
        normalized = f"{name}.rounded"
    return [*nodes, op("Mul", name, normalized, scale)]


def _rotary(graph: GraphProto, node: NodeProto, wanted: int) -> list[NodeProto]:
    """Rotate the halves of x [B, heads, T, D] by cos, sin [B, T, D / 2]: (a cos - b sin, a sin + b cos)."""
    name, (x, cos, sin) = node.name, node.input
    half = f"{name}.a", f"{name}.b"
    split = op("Split", f"{name}.halves", x, axis=-1, num_outputs=2)
    del split.output[:]
    split.output.extend(half)
    a, b = half
    return [
        split,
        op("Unsqueeze", f"{name}.cos", cos, integers(graph, 1)),  # [B, 1, T, D / 2]
        op("Unsqueeze", f"{name}.sin", sin, integers(graph, 1)),
        op("Mul", f"{name}.a_cos", a, f"{name}.cos"),
        op("Mul", f"{name}.b_sin", b, f"{name}.sin"),
        op("Mul", f"{name}.a_sin", a, f"{name}.sin"),
        op("Mul", f"{name}.b_cos", b, f"{name}.cos"),
        op("Sub", f"{name}.first", f"{name}.a_cos", f"{name}.b_sin"),
        op("Add", f"{name}.second", f"{name}.a_sin", f"{name}.b_cos"),
        op("Concat", name, f"{name}.first", f"{name}.second", axis=-1),
    ]


def _gelu(graph: GraphProto, node: NodeProto, wanted: int) -> list[NodeProto]:
    """x / 2 (1 + erf(x / sqrt 2))."""
    name, x = node.name, node.input[0]
    root = constant(graph, "primitive.half_root", math.sqrt(0.5), wanted)
    half = constant(graph, "primitive.half", 0.5, wanted)
    one = constant(graph, "primitive.one", 1.0, wanted)
    return [
        op("Mul", f"{name}.scaled", x, root),
        op("Erf", f"{name}.erf", f"{name}.scaled"),
        op("Add", f"{name}.shifted", f"{name}.erf", one),
        op("Mul", f"{name}.half", x, half),
        op("Mul", name, f"{name}.half", f"{name}.shifted"),
    ]
