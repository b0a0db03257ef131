"""A linear layer in the graph, in each of its forms: x @ W (+ b), [.., K] -> [.., N].

Standard operators only. What an engine makes of them (one fused kernel, mostly) is its lowering's business.
"""

from __future__ import annotations

from onnx import TensorProto

from qwen2vl_export.graph import SCALE, Graph
from qwen2vl_rt.number_formats import SMALLEST_PEAK


def linear(graph: Graph, name: str, x: str, source: str, inputs: int, outputs: int, bias: bool) -> str:
    """Add the layer `name` in the graph's form. `source` is the checkpoint's name of the layer."""
    product = f"{name}.product" if bias else name
    wide = graph.linear_form != "float" and graph.eight_bits(f"{source}.weight")
    form = _eight_bits if wide else _FORMS[graph.linear_form]
    form(graph, name, product, x, f"{source}.weight", inputs, outputs)
    if not bias:
        return product
    return graph.op("Add", name, product, graph.weight(f"{name}.bias", [outputs], f"{source}.bias"))


def table_product(graph: Graph, name: str, x: str, source: str, rows: int, width: int, file: str) -> str:
    """Add x @ table^T, [B, H] -> [B, V], over a table stored [V, H] in `file`."""
    return graph.op("Gemm", name, x, table(graph, name, source, rows, width, file), transB=1)


def table(graph: Graph, name: str, source: str, rows: int, width: int, file: str) -> str:
    """Declare the table of `name` and return its values [V, H]."""
    if graph.table_form == "int8":
        return graph.blocks(f"{name}.weight", source, rows, width, TensorProto.UINT8, file)
    return graph.weight(f"{name}.weight", [rows, width], source, file)


def _float(graph: Graph, name: str, product: str, x: str, source: str, inputs: int, outputs: int) -> None:
    graph.op("MatMul", product, x, graph.linear_weight(f"{name}.weight", source, [inputs], outputs))


def _int4(graph: Graph, name: str, product: str, x: str, source: str, inputs: int, outputs: int) -> None:
    """Weights in blocks along K, [N, K]; activations stay as they are."""
    _blocks(graph, name, product, x, source, inputs, outputs, TensorProto.UINT4)


def _eight_bits(
    graph: Graph, name: str, product: str, x: str, source: str, inputs: int, outputs: int
) -> None:
    """The same with 8-bit codes."""
    _blocks(graph, name, product, x, source, inputs, outputs, TensorProto.UINT8)


def _blocks(
    graph: Graph, name: str, product: str, x: str, source: str, inputs: int, outputs: int, codes: int
) -> None:
    weight = graph.blocks(f"{name}.weight", source, outputs, inputs, codes)  # [N, K]
    transposed = graph.op("Transpose", f"{name}.weight.transposed", weight, perm=[1, 0])  # [K, N]
    graph.op("MatMul", product, x, transposed)


def _int8(graph: Graph, name: str, product: str, x: str, source: str, inputs: int, outputs: int) -> None:
    """Weights with a scale an output, activations with a scale a token: integers meet in the product."""
    codes = graph.linear_weight(f"{name}.weight", source, [inputs], outputs, TensorProto.INT8)  # [K, N]
    scale = graph.weight(
        f"{name}.weight{SCALE}", [outputs], source, None, TensorProto.FLOAT, [outputs, inputs]
    )
    zero_point = graph.constant("constant.zero_point", TensorProto.UINT8, 128)
    quantized = _quantized(graph, x)
    counts = graph.op("MatMulInteger", f"{name}.integer", quantized, codes, zero_point)  # int32 [.., N]
    counts = graph.op("Cast", f"{name}.counts", counts, to=TensorProto.FLOAT)
    by_token = graph.op("Mul", f"{name}.by_token", counts, f"{x}.scale")
    graph.op("Mul", product, by_token, scale)


def _quantized(graph: Graph, x: str) -> str:
    """Round x to uint8 with zero point 128 and a scale a token, once for all layers that take it.

    The codes 1 to 255 are symmetric: a token's largest magnitude is 127 steps. CPUs multiply u8 x s8 fast
    and s8 x s8 slowly, hence the shift.
    """
    if graph.has(f"{x}.quantized"):
        return f"{x}.quantized"
    absolute = graph.op("Abs", f"{x}.absolute", x)
    peak = graph.op("ReduceMax", f"{x}.peak", absolute, graph.integers(-1), keepdims=1)  # [.., 1]
    positive = graph.op(
        "Max", f"{x}.peak.positive", peak, graph.number("constant.smallest_peak", SMALLEST_PEAK)
    )
    scale = graph.op("Mul", f"{x}.scale", positive, graph.number("constant.step", 1 / 127))
    steps = graph.op("Div", f"{x}.steps", x, scale)
    rounded = graph.op("Round", f"{x}.rounded", steps)  # half to even
    shifted = graph.op("Add", f"{x}.shifted", rounded, graph.number("constant.shift", 128.0))
    return graph.op("Cast", f"{x}.quantized", shifted, to=TensorProto.UINT8)


_FORMS = {"float": _float, "int4": _int4, "int8": _int8}
