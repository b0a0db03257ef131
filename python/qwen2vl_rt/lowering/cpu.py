"""What ONNX Runtime on a CPU wants different from the portable graphs."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from qwen2vl_rt import _core
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.lowering.block_linear import to_block_linear
from qwen2vl_rt.lowering.cpu_attention import check_heads, to_cached_attention, to_picture_attention
from qwen2vl_rt.lowering.linear import fuse_linear
from qwen2vl_rt.lowering.matmul_integer import to_matmul_integer_to_float
from qwen2vl_rt.lowering.matmul_nbits import to_matmul_nbits
from qwen2vl_rt.lowering.quantize_tokens import to_quantize_tokens
from qwen2vl_rt.lowering.scale_tokens import to_scale_tokens
from qwen2vl_rt.lowering.token_linear import to_token_linear
from qwen2vl_rt.lowering.widen import widen_to_float32


def lower_decoder(
    model: ModelProto, weights: dict[str, np.ndarray], geometry: Geometry, *, prompts: bool = False
) -> None:
    """Lower the decoder and its external weights in place.

    Args:
        model: the portable graph.
        weights: its external data by initializer name.
        geometry: the bundle's.
        prompts: whether it takes the tokens of prompts only, and they take no other graph (int4-int8). Then
            attention multiplies bfloat16 numbers; otherwise a token's result would depend on whether it came
            alone, since the few queries of a decode step attend in float32.
    """
    check_heads(geometry.decoder.head_dim)
    _lower_products(model, weights)
    to_cached_attention(model, bfloat16=prompts)


def lower_vision(model: ModelProto, weights: dict[str, np.ndarray], geometry: Geometry) -> None:
    """Lower the vision tower and its external weights in place."""
    quantized = any(node.op_type == "MatMulInteger" for node in model.graph.node)
    check_heads(geometry.vision.head_dim)
    _lower_products(model, weights)
    # In a quantized bundle queries and keys are what a product of 8-bit activations made.
    to_picture_attention(model, codes=quantized)


def _lower_products(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Whatever form the matrices have, the kernel that multiplies them fastest."""
    widen_to_float32(model, weights)
    to_matmul_nbits(model, weights)
    own = _core.has_integer_linear()
    if own and not _core.has_int8_tiles():  # the engine's int8 products use tiles, ours do not
        to_token_linear(model, weights)
    to_matmul_integer_to_float(model)
    to_quantize_tokens(model)
    to_scale_tokens(model)
    if own:
        to_block_linear(model, weights)
        fuse_linear(model)
