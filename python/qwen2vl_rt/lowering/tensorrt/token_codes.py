"""Products of 8-bit codes as TensorRT knows them: QuantizeLinear, DequantizeLinear and MatMul.

TensorRT wants an activation's scale to be a constant, where ours is one a token. So each token is first
divided by its scale, in float32; QuantizeLinear with the constant scale 1 then rounds it to codes, the
product of the two dequantized operands is the product of codes, and the token's scale is multiplied back in
at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto

from qwen2vl_rt.lowering.graph import constant, integers, op
from qwen2vl_rt.number_formats import SMALLEST_PEAK


@dataclass(frozen=True)
class Code:
    """A number format of 8 bits."""

    name: str
    element_type: int
    largest: float
    """The code that a token's largest magnitude becomes."""


INT8 = Code("int8", TensorProto.INT8, 127.0)
FP8 = Code("fp8", TensorProto.FLOAT8E4M3FN, 448.0)


def token_codes(graph: GraphProto, x: str, code: Code, wanted: int) -> list[NodeProto]:
    """Codes of x [.., K] in steps of each token's scale: `{x}.codes` in type `wanted`, `{x}.token_scale`."""
    smallest = constant(graph, "codes.smallest_peak", SMALLEST_PEAK, TensorProto.FLOAT)
    step = constant(graph, f"codes.{code.name}.step", 1 / code.largest, TensorProto.FLOAT)
    zero = constant(graph, f"codes.{code.name}.zero", 0, code.element_type)
    nodes, wide = [], x
    if wanted != TensorProto.FLOAT:
        wide = f"{x}.float"
        nodes.append(op("Cast", wide, x, to=TensorProto.FLOAT))
    return [
        *nodes,
        op("Abs", f"{x}.magnitudes", wide),
        op("ReduceMax", f"{x}.largest", f"{x}.magnitudes", integers(graph, -1), keepdims=1),  # [.., 1]
        op("Max", f"{x}.largest.positive", f"{x}.largest", smallest),
        op("Mul", f"{x}.token_scale", f"{x}.largest.positive", step),
        op("Div", f"{x}.in_steps", wide, f"{x}.token_scale"),
        op("QuantizeLinear", f"{x}.rounded_codes", f"{x}.in_steps", _one(graph, TensorProto.FLOAT), zero),
        op("DequantizeLinear", f"{x}.codes", f"{x}.rounded_codes", _one(graph, wanted), zero),
    ]


def product_of_codes(name: str, x: str, weight: str, scale: str, wanted: int) -> list[NodeProto]:
    """x @ weight, [.., N] in type `wanted`, from the codes of x and the weight's codes [K, N], scale [N]."""
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
    name = TensorProto.DataType.Name(element_type).lower()
    return constant(graph, f"codes.one.{name}", 1.0, element_type)
