"""Products with blocked 4- and 8-bit weights as ONNX Runtime's MatMulNBits, which reads the codes themselves.

The portable form, DequantizeLinear and MatMul (or Gemm), writes the matrix out in float32 at every step.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from qwen2vl_rt.lowering.graph import (
    CONTRIB_DOMAIN,
    attribute,
    bias_behind,
    change_weight,
    drop_unread,
    initializers,
    only_readers,
    producers,
    replace_nodes,
    use_contrib_operators,
)

BITS = {TensorProto.UINT4: 4, TensorProto.UINT8: 8}

# Activations are rounded to 8 bits, with a scale for each token's block of inputs (the weights' blocks), so
# that the products are integer ones: several times the speed of level 1, which keeps float32. An activation
# moves by at most 1/254 of its block's peak and a product by about 1/100 of its size, well below what
# 4-bit weights do to it. Nothing but a token's own block decides, so chunks and batches change nothing.
ACCURACY_LEVEL = 4


def to_matmul_nbits(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Replace x @ dequantized^T (+ bias) by MatMulNBits, in place, where the codes are among `weights`.

    MatMulNBits' B is [N, K / block, bytes of a block], which are the stored codes as they lie: no copy where
    blocks are whole (an incomplete last block is padded). Zero points are left out where all are the middle
    of the range, as the operator's default.
    """
    graph = model.graph
    made_by, readers = producers(graph), only_readers(graph)
    tensors = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    repacked: set[str] = set()
    for product in graph.node:
        dequantize = _dequantize(product, made_by)
        if dequantize is None or dequantize.input[0] not in weights:
            continue
        codes, scale, zero_point = dequantize.input
        n, k = tensors[codes].dims
        bits, block = BITS[tensors[codes].data_type], attribute(dequantize, "block_size")
        if codes not in repacked:  # a matrix may serve several products
            repacked.add(codes)
            symmetric = bool((_codes(weights[zero_point], bits) == 1 << (bits - 1)).all())
            change_weight(
                tensors[codes], weights, _blocks(weights[codes], n, k, bits, block), TensorProto.UINT8
            )
            if symmetric:
                del weights[zero_point]
            else:
                change_weight(
                    tensors[zero_point], weights, _per_row(weights[zero_point], n, bits), TensorProto.UINT8
                )
        inputs = [product.input[0], codes, scale, zero_point if zero_point in weights else ""]
        output, bias = product.output[0], bias_behind(product.output[0], n, readers, tensors)
        if bias is not None:
            add, name = bias
            inputs += ["", name]
            output = add.output[0]
            replacements[add.name] = []
        replacements[product.name] = [
            nbits_node(
                product.name,
                inputs,
                output,
                K=k,
                N=n,
                bits=bits,
                block_size=block,
                accuracy_level=ACCURACY_LEVEL,
            )
        ]
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_contrib_operators(model)


def nbits_node(name: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
    """A MatMulNBits in the place of the product `name`."""
    return helper.make_node(
        "MatMulNBits", inputs, [output], f"{name}.nbits", domain=CONTRIB_DOMAIN, **attributes
    )


def _dequantize(product: NodeProto, made_by: dict[str, NodeProto]) -> NodeProto | None:
    """The DequantizeLinear behind x @ W^T, W [N, K] in blocks along K; None for any other node."""
    if product.op_type not in ("MatMul", "Gemm") or len(product.input) != 2:
        return None
    node = made_by.get(product.input[1])
    if product.op_type == "Gemm":
        if not attribute(product, "transB"):
            return None
    elif node is not None and node.op_type == "Transpose":
        node = made_by.get(node.input[0])
    else:
        return None
    if node is None or node.op_type != "DequantizeLinear" or not attribute(node, "block_size"):
        return None
    return node


def _codes(stored: np.ndarray, bits: int) -> np.ndarray:
    """One code a byte, flat; two 4-bit codes share a stored byte, the first in its low half."""
    flat = stored.reshape(-1)
    return flat if bits == 8 else np.stack([flat & 15, flat >> 4], axis=1).reshape(-1)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, even number] as bytes, two 4-bit codes in one."""
    return codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4


def _blocks(stored: np.ndarray, n: int, k: int, bits: int, block: int) -> np.ndarray:
    """Codes as MatMulNBits' B, uint8 [N, blocks, bytes of a block]."""
    blocks = -(-k // block)
    if k % block:
        codes = _codes(stored, bits)[: n * k].reshape(n, k)
        stored = _packed(np.pad(codes, ((0, 0), (0, blocks * block - k))), bits)
    return stored.reshape(n, blocks, block * bits // 8)


def _per_row(stored: np.ndarray, n: int, bits: int) -> np.ndarray:
    """Zero points as MatMulNBits takes them, uint8 [N, bytes of a row]: every row starts a byte."""
    codes = _codes(stored, bits)
    codes = codes[: len(codes) // n * n].reshape(n, -1)
    return _packed(np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))), bits) if bits == 4 else codes
