"""4- and 8-bit products in blocks of 128 as the project's own BlockLinear (csrc/integer).

It multiplies what MatMulNBits at accuracy level 4 does: activations rounded to 8 bits by blocks. Its packed
weights are one stream; at one token it runs at the memory's speed, at many near the int8 products' rate.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.graph import attribute, drop_unread, replace_nodes, use_own_operators
from qwen2vl_rt.lowering.linear import linear_node
from qwen2vl_rt.lowering.quantize_tokens import Activations
from qwen2vl_rt.weights import is_mapped


def to_block_linear(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Replace each MatMulNBits in blocks of 128 by a BlockLinear, in place."""
    activations = Activations(model)
    replacements = {}
    for product in model.graph.node:
        if product.op_type != "MatMulNBits" or attribute(product, "block_size") != _core.BLOCK:
            continue
        x, codes, scale, zero_points, _group, bias, *_ = [*product.input, "", "", ""]
        source, other, slope = activations.unscaled_inputs(x)
        node = linear_node(
            "BlockLinear",
            product.name,
            source,
            other,
            slope,
            [codes, scale, zero_points, bias],
            product.output[0],
            K=attribute(product, "K"),
            bits=attribute(product, "bits"),
            zero_points=int(bool(zero_points)),
            mapped=int(is_mapped(weights.get(codes))),
        )
        replacements[product.name] = [node]
    if replacements:
        replace_nodes(model.graph, replacements)
        drop_unread(model.graph)
        use_own_operators(model)
