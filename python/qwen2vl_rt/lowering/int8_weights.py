"""int8 products as MatMulNBits with 8-bit weights: what ONNX Runtime's CUDA kernels multiply.

Its CUDA MatMulInteger takes signed activations only, and around it stands a chain of element-wise passes.
Here the weights stay 8 bit and the activations keep their float format: closer to the unquantized model than
the portable graph, which rounds activations to 8 bits.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from qwen2vl_rt import _core
from qwen2vl_rt.errors import BundleError
from qwen2vl_rt.lowering.graph import (
    bias_behind,
    change_weight,
    drop_unread,
    initializers,
    only_readers,
    replace_nodes,
    use_contrib_operators,
)
from qwen2vl_rt.lowering.matmul_nbits import nbits_node
from qwen2vl_rt.lowering.quantize_tokens import Activations


def to_weight_only_int8(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Replace quantize(x), MatMulInteger, Cast, Mul, Mul (, Add) by MatMulNBits, in place."""
    graph = model.graph
    activations, readers = Activations(model), only_readers(graph)
    tensors = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in graph.node:
        if product.op_type != "MatMulInteger":
            continue
        made_by = activations.made_by.get(product.input[0])
        divide = made_by and activations.chain(made_by)
        if divide is None:
            raise BundleError(
                f"{graph.name}: {product.input[0]} is not quantized as an exporter of this version does it. "
                "Export the bundle again."
            )
        counts = readers[product.output[0]]
        by_token = readers[counts.output[0]]
        by_output = readers[by_token.output[0]]
        weight = product.input[1]
        scale = next(name for name in by_output.input if name in tensors)
        k, n = tensors[weight].dims
        change_weight(tensors[weight], weights, _blocks(weights[weight]), TensorProto.UINT8)
        blocks = -(-k // _core.BLOCK)  # the stored scales are per output, so they repeat
        repeated = np.repeat(weights[scale].reshape(n, 1), blocks, axis=1)
        change_weight(tensors[scale], weights, np.ascontiguousarray(repeated), TensorProto.FLOAT)
        inputs = [divide.input[0], weight, scale]
        output, bias = by_output.output[0], bias_behind(by_output.output[0], n, readers, tensors)
        if bias is not None:
            add, name = bias
            inputs += ["", "", name]
            output = add.output[0]
            replacements[add.name] = []
        replacements |= {node.name: [] for node in (counts, by_token, by_output)}
        replacements[product.name] = [
            nbits_node(product.name, inputs, output, K=k, N=n, bits=8, block_size=_core.BLOCK)
        ]
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_contrib_operators(model)


def _blocks(weight: np.ndarray) -> np.ndarray:
    """int8 [K, N] as MatMulNBits' B with zero point 128: uint8 [N, blocks, _core.BLOCK]."""
    k, n = weight.shape
    padding = -k % _core.BLOCK
    codes = np.ascontiguousarray(weight.T).view(np.uint8) ^ np.uint8(0x80)  # code + 128
    if padding:
        codes = np.pad(codes, ((0, 0), (0, padding)), constant_values=128)
    return codes.reshape(n, -1, _core.BLOCK)
