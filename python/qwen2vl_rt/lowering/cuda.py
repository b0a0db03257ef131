"""What ONNX Runtime on an NVIDIA GPU wants different from the portable graphs."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.graph_format import LOGITS, PRESENT_LENGTH, VISUAL_EMBEDDINGS
from qwen2vl_rt.lowering.cut import cut_at
from qwen2vl_rt.lowering.device_linear import rotate_heads, to_device_linear
from qwen2vl_rt.lowering.flat_heads import to_flat_heads
from qwen2vl_rt.lowering.group_query_attention import LAST, LONGEST, to_group_query_attention
from qwen2vl_rt.lowering.int8_weights import to_weight_only_int8
from qwen2vl_rt.lowering.matmul_nbits import to_matmul_nbits
from qwen2vl_rt.lowering.multi_head_attention import to_multi_head_attention
from qwen2vl_rt.lowering.narrow import drop_softmax_precision, narrow_floats, widen_output
from qwen2vl_rt.lowering.quick_gelu import to_quick_gelu
from qwen2vl_rt.lowering.simplified_layer_norm import to_simplified_layer_norm


def lower_decoder(
    model: ModelProto,
    weights: dict[str, np.ndarray],
    geometry: Geometry,
    *,
    narrow: int | None = None,
    grouped: bool = True,
    own_products: bool = False,
) -> None:
    """Lower the decoder and its external weights in place.

    Args:
        model: the portable graph.
        weights: its external data by name.
        geometry: the model's sizes.
        narrow: element type (BFLOAT16, FLOAT16) to compute in where the graph is float32; None leaves it.
        grouped: GroupQueryAttention. Its CUDA kernels are 16 bit: float32 keeps the portable attention.
        own_products: layers as the project's own operators (csrc/linear); else ONNX Runtime's.
    """
    _lower_products(model, weights)
    if own_products:
        to_device_linear(model, weights, narrow or model.graph.input[0].type.tensor_type.elem_type)
    to_simplified_layer_norm(model)
    if grouped:
        to_group_query_attention(model, geometry.decoder.heads, geometry.decoder.kv_heads)
        cut_at(model, {LAST: (TensorProto.INT32, ["B"]), LONGEST: (TensorProto.INT32, [])})
        to_flat_heads(model)
        rotate_heads(model)
    else:
        cut_at(model, {PRESENT_LENGTH: (TensorProto.INT64, ["B"])})
    if narrow is not None:
        narrow_floats(model, weights, narrow)
    drop_softmax_precision(model)
    widen_output(model, LOGITS)


def lower_vision(
    model: ModelProto, weights: dict[str, np.ndarray], geometry: Geometry, *, narrow: int | None = None
) -> None:
    """Lower the vision tower and its external weights in place; its output becomes float32."""
    _lower_products(model, weights)
    to_multi_head_attention(model, geometry.vision.heads)
    to_flat_heads(model)
    to_quick_gelu(model)
    if narrow is not None:
        narrow_floats(model, weights, narrow)
    widen_output(model, VISUAL_EMBEDDINGS)


def _lower_products(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    to_matmul_nbits(model, weights)
    to_weight_only_int8(model, weights)
