"""int8 products as MatMulNBits with 8-bit weights: what ONNX Runtime's CUDA kernels multiply.

Its CUDA MatMulInteger takes signed activations only, and around it stands a chain of element-wise passes.
Here the weights stay 8 bit and the activations keep their float format: closer to the unquantized model than
the portable graph, which rounds activations to 8 bits.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from qwen2vl_rt.lowering.graph import (
    CONTRIB_DOMAIN,
    drop_unread,
    only_readers,
    producers,
    replace_nodes,
    use_contrib_operators,
)

BLOCK = 128  # inputs that share a scale; the stored scales are per output, so they repeat


def to_weight_only_int8(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Replace quantize(x), MatMulInteger, Cast, Mul, Mul (, Add) by MatMulNBits, in place."""
    graph = model.graph
    made_by, readers = producers(graph), only_readers(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    replacements: dict[str, list[NodeProto]] = {}
    for product in graph.node:
        if product.op_type != "MatMulInteger":
            continue
        counts = readers[product.output[0]]
        by_token = readers[counts.output[0]]
        by_output = readers[by_token.output[0]]
        weight = product.input[1]
        scale = next(name for name in by_output.input if name in tensors)
        k, n = tensors[weight].dims
        _store(tensors[weight], weights, _blocks(weights[weight]), TensorProto.UINT8)
        blocks = -(-k // BLOCK)
        repeated = np.repeat(weights[scale].reshape(n, 1), blocks, axis=1)
        _store(tensors[scale], weights, np.ascontiguousarray(repeated), TensorProto.FLOAT)
        inputs = [_quantized_from(product.input[0], made_by), weight, scale]
        output, add = by_output.output[0], readers.get(by_output.output[0])
        bias = add is not None and add.op_type == "Add"
        bias_name = (
            next((name for name in add.input if name in tensors and list(tensors[name].dims) == [n]), None)
            if bias
            else None
        )
        if bias_name:
            inputs += ["", "", bias_name]
            output = add.output[0]
            replacements[add.name] = []
        replacements |= {node.name: [] for node in (counts, by_token, by_output)}
        replacements[product.name] = [
            helper.make_node(
                "MatMulNBits",
                inputs,
                [output],
                f"{product.name}.nbits",
                domain=CONTRIB_DOMAIN,
                K=k,
                N=n,
                bits=8,
                block_size=BLOCK,
            )
        ]
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_contrib_operators(model)


def _quantized_from(codes: str, made_by: dict[str, NodeProto]) -> str:
    """The tensor x that Cast(Add(Round(Div(x, scale)), 128)) makes codes of."""
    node = made_by[codes]
    for kind in ("Cast", "Add", "Round", "Div"):
        if node.op_type != kind:
            raise ValueError(f"{codes} is not quantized in the bundle's way: {node.op_type} for {kind}")
        if kind == "Div":
            return node.input[0]
        node = made_by[node.input[0]]
    raise AssertionError


def _blocks(weight: np.ndarray) -> np.ndarray:
    """int8 [K, N] as MatMulNBits' B with zero point 128: uint8 [N, blocks, BLOCK]."""
    k, n = weight.shape
    padding = -k % BLOCK
    codes = np.ascontiguousarray(weight.T).view(np.uint8) ^ np.uint8(0x80)  # code + 128
    if padding:
        codes = np.pad(codes, ((0, 0), (0, padding)), constant_values=128)
    return codes.reshape(n, -1, BLOCK)


def _store(tensor: TensorProto, weights: dict[str, np.ndarray], array: np.ndarray, element_type: int) -> None:
    weights[tensor.name] = array
    tensor.data_type = element_type
    tensor.dims[:] = array.shape
