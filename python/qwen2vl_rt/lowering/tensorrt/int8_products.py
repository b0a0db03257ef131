"""Products of 8-bit integers as TensorRT knows them: QuantizeLinear, DequantizeLinear and MatMul.

TensorRT has no MatMulInteger, and wants an activation's scale to be a constant, where ours is one a token.
So each token is first divided by its scale, in float32; QuantizeLinear with the constant scale 1 then
rounds it to the very codes of the portable graph, the product of the two dequantized operands is the integer
product, and the token's scale is multiplied back in at the end.
"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qwen2vl_rt.lowering.graph import drop_unread, producers, replace_nodes
from qwen2vl_rt.lowering.tensorrt.nodes import ELEMENT_TYPES, constant, integers, op, readers

SMALLEST_PEAK = 1e-10  # of a token, as in the portable graph; float16 could not hold it


def to_quantized_products(model: ModelProto, number_format: str) -> None:
    """Replace every MatMulInteger and what surrounds it, in place.

    Args:
        model: a graph with the portable int8 layers, its floating-point type `number_format`.
        number_format: "fp32", "bf16" or "fp16".
    """
    graph, wanted = model.graph, ELEMENT_TYPES[number_format]
    made_by, read_by = producers(graph), readers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        quantized = made_by[product.input[0]]
        shifted = made_by[quantized.input[0]]
        steps = made_by[made_by[shifted.input[0]].input[0]]
        x = steps.input[0]
        if quantized.name not in replacements:
            replacements[quantized.name] = _quantized(graph, x, wanted)

        (counts,) = read_by[product.output[0]]
        (by_token,) = read_by[counts.output[0]]
        (by_output,) = read_by[by_token.output[0]]
        weight = product.input[1]
        (scale,) = (name for name in by_output.input if name != by_token.output[0])
        replacements |= {product.name: [], counts.name: [], by_token.name: []}
        replacements[by_output.name] = _product(graph, by_output.output[0], x, weight, scale, wanted)
    replace_nodes(graph, replacements)
    drop_unread(graph)


def _quantized(graph: GraphProto, x: str, wanted: int) -> list[NodeProto]:
    """Codes of x [.., K] in steps of each token's scale: `{x}.codes`, int8 values in type `wanted`."""
    value = constant(graph, "int8.smallest_peak", SMALLEST_PEAK, TensorProto.FLOAT)
    step = constant(graph, "int8.step", 1 / 127, TensorProto.FLOAT)
    nodes, wide = [], x
    if wanted != TensorProto.FLOAT:
        wide = f"{x}.float"
        nodes.append(op("Cast", wide, x, to=TensorProto.FLOAT))
    return [
        *nodes,
        op("Abs", f"{x}.magnitudes", wide),
        op("ReduceMax", f"{x}.largest", f"{x}.magnitudes", integers(graph, -1), keepdims=1),  # [.., 1]
        op("Max", f"{x}.largest.positive", f"{x}.largest", value),
        op("Mul", f"{x}.token_scale", f"{x}.largest.positive", step),
        op("Div", f"{x}.in_steps", wide, f"{x}.token_scale"),
        op("QuantizeLinear", f"{x}.int8", f"{x}.in_steps", _one(graph, TensorProto.FLOAT), _zero(graph)),
        op("DequantizeLinear", f"{x}.codes", f"{x}.int8", _one(graph, wanted), _zero(graph)),
    ]


def _product(graph: GraphProto, name: str, x: str, weight: str, scale: str, wanted: int) -> list[NodeProto]:
    """x @ weight, [.., N], from the codes of both."""
    nodes = [
        op("DequantizeLinear", f"{weight}.dequantized", weight, scale, axis=1),  # [K, N]
        op("MatMul", f"{name}.in_steps", f"{x}.codes", f"{weight}.dequantized"),
    ]
    if wanted == TensorProto.FLOAT:
        return [*nodes, op("Mul", name, f"{name}.in_steps", f"{x}.token_scale")]
    return [
        *nodes,
        op("Cast", f"{name}.wide", f"{name}.in_steps", to=TensorProto.FLOAT),
        op("Mul", f"{name}.scaled", f"{name}.wide", f"{x}.token_scale"),
        op("Cast", name, f"{name}.scaled", to=wanted),
    ]


def _one(graph: GraphProto, element_type: int) -> str:
    return constant(graph, f"int8.one.{element_type}", 1.0, element_type)


def _zero(graph: GraphProto) -> str:
    return constant(graph, "int8.zero", 0, TensorProto.INT8)
