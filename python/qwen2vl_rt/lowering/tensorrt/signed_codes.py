"""Quantized matrices with signed codes and no zero points: the only ones that TensorRT builds.

The portable graphs store unsigned codes c with a scale s and a zero point z a block of 128 numbers along K.
With m the middle of the codes' range (8 or 128):

    sum_k x[k] s (c[k] - z)  =  sum_k x[k] s (c[k] - m)  +  s (m - z) sum_k x[k]        over one block

The first part is the same product with signed codes. The second vanishes where z = m (everything that
this project quantizes itself); otherwise it is one small product: the sums of x over its blocks,
[tokens, K / 128], times a matrix [K / 128, N].
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.graph import (
    Weights,
    add_weight,
    attribute,
    drop_unread,
    initializers,
    integers,
    op,
    readers,
    replace_nodes,
)

# Unsigned type: (signed type, middle m, the bits whose flip subtracts m from every code in a byte).
SIGNED = {
    TensorProto.UINT4: (TensorProto.INT4, 8, 0x88),
    TensorProto.UINT8: (TensorProto.INT8, 128, 0x80),
}


def to_signed_codes(model: ModelProto, weights: Weights) -> None:
    """Rewrite every block-quantized matrix of `model` and its codes in `weights`, in place.

    Args:
        model: a graph whose matrices [N, K] go through DequantizeLinear(axis=1) into a MatMul (transposed) or
            a Gemm (transB) with an input [tokens, K] (`flat_products.py`).
        weights: external data by name; codes as the bytes of the file, scales in the graph's number format.

    Raises:
        BackendError: K is no multiple of the block size.
    """
    graph = model.graph
    tensors, read_by = initializers(graph), readers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    sums: dict[str, str] = {}  # input of a product -> its sums by block, made once for all that read it
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and len(node.input) == 3]:
        codes, scale, zero_point = node.input
        signed, middle, flip = SIGNED[tensors[codes].data_type]
        block = int(attribute(node, "block_size"))
        if (columns := tensors[codes].dims[1]) % block:
            raise BackendError(
                f"{codes} has {columns} inputs, no multiple of its block of {block}: TensorRT builds only "
                "whole blocks. Use a bundle that is not quantized, or the cpu backend."
            )
        weights[codes] = weights[codes].view(np.uint8) ^ np.uint8(flip)
        tensors[codes].data_type = signed
        replacements[node.name] = [op(node.op_type, node.name, codes, scale, axis=1, block_size=block)]

        offsets = middle - _unpacked(weights[zero_point], tensors[zero_point])  # m - z, [N, K / block]
        if offsets.any():
            product = _product(read_by, node.output[0])
            correction = weights[scale].astype(np.float32) * offsets
            matrix = add_weight(
                graph,
                weights,
                f"{codes}.correction",
                correction.T.astype(weights[scale].dtype),
                tensors[scale].data_type,
            )
            replacements[product.name] = _corrected(graph, product, matrix, columns // block, block, sums)
    replace_nodes(graph, replacements)
    drop_unread(graph)


def _product(read_by: dict[str, list[NodeProto]], matrix: str) -> NodeProto:
    """The MatMul or Gemm that a dequantized matrix ends in."""
    (reader,) = read_by[matrix]
    return _product(read_by, reader.output[0]) if reader.op_type == "Transpose" else reader


def _corrected(
    graph: object, product: NodeProto, matrix: str, blocks: int, block: int, sums: dict[str, str]
) -> list[NodeProto]:
    """The product with signed codes, plus the sums of its input by block times `matrix`."""
    x, name = product.input[0], product.output[0]
    nodes = []
    if x not in sums:
        sums[x] = f"{x}.block_sums"
        nodes = [
            op("Reshape", f"{x}.blocks", x, integers(graph, 0, blocks, block)),
            op("ReduceSum", sums[x], f"{x}.blocks", integers(graph, -1), keepdims=0),  # [tokens, K / block]
        ]
    signed = NodeProto()
    signed.CopyFrom(product)
    signed.name = signed.output[0] = f"{name}.signed"
    nodes += [
        signed,
        op("MatMul", f"{name}.correction", sums[x], matrix),
        op("Add", name, signed.output[0], f"{name}.correction"),
    ]
    return nodes


def _unpacked(stored: np.ndarray, tensor: TensorProto) -> np.ndarray:
    """Unsigned codes as int32 in the tensor's shape; two 4-bit codes lie in a byte, the low one first."""
    values = stored.view(np.uint8).reshape(-1)
    if tensor.data_type == TensorProto.UINT4:
        values = np.stack([values & 15, values >> 4], axis=1).reshape(-1)
    return values[: np.prod(tensor.dims)].reshape(tuple(tensor.dims)).astype(np.int32)
