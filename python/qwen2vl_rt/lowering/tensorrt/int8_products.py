"""The portable int8 layers, MatMulInteger and what surrounds it, as products of codes (`token_codes.py`).

TensorRT has no MatMulInteger. The codes stay the same, so the products do.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from qwen2vl_rt.lowering.graph import drop_unread, producers, readers, replace_nodes
from qwen2vl_rt.lowering.tensorrt.token_codes import INT8, product_of_codes, token_codes
from qwen2vl_rt.number_formats import format_named


def to_int8_products(model: ModelProto, number_format: str) -> None:
    """Replace every MatMulInteger, in place.

    Args:
        model: a graph with the portable int8 layers, its floating-point type `number_format`.
        number_format: "fp32", "bf16" or "fp16".
    """
    graph, wanted = model.graph, format_named(number_format).element_type
    made_by, read_by = producers(graph), readers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        quantized = made_by[product.input[0]]
        shifted = made_by[quantized.input[0]]
        steps = made_by[made_by[shifted.input[0]].input[0]]
        x = steps.input[0]
        if quantized.name not in replacements:
            replacements[quantized.name] = token_codes(graph, x, INT8, wanted)

        (counts,) = read_by[product.output[0]]
        (by_token,) = read_by[counts.output[0]]
        (by_output,) = read_by[by_token.output[0]]
        (scale,) = (name for name in by_output.input if name != by_token.output[0])
        replacements |= {product.name: [], counts.name: [], by_token.name: []}
        name, weight = by_output.output[0], product.input[1]
        replacements[by_output.name] = product_of_codes(name, x, weight, scale, wanted)
    replace_nodes(graph, replacements)
    drop_unread(graph)
