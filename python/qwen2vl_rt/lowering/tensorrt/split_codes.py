"""8-bit matrices as two 4-bit ones, because TensorRT multiplies by 4-bit blocks as they lie.

Of 8-bit blocks it writes the matrix out in 16 bits at every run (233 MB of lm_head become 467 MB written and
read), and where several products share an input it stores them in 16 bits. A code c is its two halves h and
l, c = 16 h + l, and so is its zero point z:

    sum_k x[k] s (c[k] - z)  =  sum_k x[k] 16 s (h[k] - z_h)  +  sum_k x[k] s (l[k] - z_l)
"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qwen2vl_rt.lowering.graph import (
    Weights,
    add_weight,
    drop_unread,
    initializers,
    op,
    readers,
    replace_nodes,
)


def split_codes(model: ModelProto, weights: Weights) -> None:
    """Replace every product by an 8-bit block-quantized matrix by the sum of two by 4-bit ones, in place.

    Args:
        model: a graph whose matrices [N, K], N and K even, go through DequantizeLinear(axis=1) into a MatMul
            (transposed) or a Gemm (transB).
        weights: external data by name; the halves take the place of the codes and zero points.
    """
    graph = model.graph
    tensors, read_by = initializers(graph), readers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and len(node.input) == 3]:
        codes, scale, zero_point = node.input
        if tensors[codes].data_type != TensorProto.UINT8:
            continue
        way = [node]  # dequantize, perhaps transpose, multiply
        while way[-1].op_type not in ("MatMul", "Gemm"):
            (reader,) = read_by[way[-1].output[0]]
            way.append(reader)
        product = way[-1].output[0]
        sixteenfold = weights[scale] * weights[scale].dtype.type(16)  # exact in every number format
        high_scale = add_weight(graph, weights, f"{scale}.high", sixteenfold, tensors[scale].data_type)
        halves: list[NodeProto] = []
        for half, half_scale in (("high", high_scale), ("low", scale)):
            parts = (_half(graph, weights, tensors[name], half) for name in (codes, zero_point))
            halves += _copies(way, half, half_scale, *parts)
        del weights[codes], weights[zero_point]
        replacements |= {step.name: [] for step in way}
        replacements[way[-1].name] = [*halves, op("Add", product, f"{product}.high", f"{product}.low")]
    replace_nodes(graph, replacements)
    drop_unread(graph)


def _copies(way: list[NodeProto], half: str, scale: str, codes: str, zero_point: str) -> list[NodeProto]:
    """The nodes of a product again, for one half of its codes."""
    copies: list[NodeProto] = []
    for step in way:
        copy = NodeProto()
        copy.CopyFrom(step)
        copy.name = copy.output[0] = f"{step.output[0]}.{half}"
        if copies:
            made = way[len(copies) - 1].output[0]
            copy.input[:] = [f"{name}.{half}" if name == made else name for name in step.input]
        else:
            copy.input[:] = [codes, scale, zero_point]
        copies.append(copy)
    return copies


def _half(graph: GraphProto, weights: Weights, tensor: TensorProto, half: str) -> str:
    """The high or low four bits of uint8 numbers: two in a byte, the first in its low half."""
    values = weights[tensor.name].reshape(-1)
    even, odd = values[::2], values[1::2]
    packed = even >> 4 | odd & 0xF0 if half == "high" else even & 0x0F | odd << 4
    return add_weight(graph, weights, f"{tensor.name}.{half}", packed, TensorProto.UINT4, tensor.dims)
