"""int8 products as the project's own TokenLinear (csrc/integer): activations to results in one operator.

The integers are MatMulInteger's. Between them and the result stand no copies in int32 or float32: a token's
scale, an output's scale and the bias are applied while the sums are in registers.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from qwen2vl_rt.lowering.graph import (
    bias_behind,
    drop_unread,
    initializers,
    only_readers,
    replace_nodes,
    use_own_operators,
)
from qwen2vl_rt.lowering.linear import linear_node
from qwen2vl_rt.lowering.matmul_integer import followers
from qwen2vl_rt.lowering.quantize_tokens import Activations
from qwen2vl_rt.weights import is_mapped


def to_token_linear(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Replace rounding to codes, MatMulInteger, Cast, both scales and bias by TokenLinear, in place.

    The two scales are multiplied with each other first: the results differ in the last bits of float32.
    """
    graph = model.graph
    activations = Activations(model)
    readers = only_readers(graph)
    tensors = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in graph.node:
        chain = (
            followers(product, readers, ("Cast", "Mul", "Mul"))
            if product.op_type == "MatMulInteger"
            else None
        )
        codes = activations.made_by.get(product.input[0])
        divide = activations.chain(codes) if chain is not None and codes is not None else None
        weight = tensors.get(product.input[1]) if divide is not None else None
        if weight is None or weight.data_type != TensorProto.INT8 or len(weight.dims) != 2:
            continue
        _counts, by_token, by_output = chain
        scale = next(name for name in by_output.input if name != by_token.output[0])
        if divide.input[1] not in by_token.input or scale not in tensors:
            continue
        last, bias = bias_behind(by_output.output[0], weight.dims[1], readers, tensors) or (by_output, "")
        source, other, slope = activations.unscaled_inputs(divide.input[0])
        node = linear_node(
            "TokenLinear",
            product.name,
            source,
            other,
            slope,
            [weight.name, scale, bias],
            last.output[0],
            mapped=int(is_mapped(weights.get(weight.name))),
        )
        replacements |= {part.name: [] for part in (product, *chain, last)}
        replacements[last.name] = [node]
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_own_operators(model)
