"""What ONNX Runtime on a CPU wants different from the portable graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto

from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.lowering.group_query_attention import to_group_query_attention
from qwen2vl_rt.lowering.multi_head_attention import to_multi_head_attention
from qwen2vl_rt.lowering.widen import widen_to_float32


def lower_decoder(model: ModelProto, folder: Path, geometry: Geometry) -> dict[str, np.ndarray]:
    """Lower the decoder in place; returns the weights that replace the bundle's (see `widen_to_float32`)."""
    widened = widen_to_float32(model, folder)
    to_group_query_attention(model, geometry.decoder.heads, geometry.decoder.kv_heads)
    return widened


def lower_vision(model: ModelProto, folder: Path, geometry: Geometry) -> dict[str, np.ndarray]:
    """Lower the vision tower in place; returns as `lower_decoder`."""
    widened = widen_to_float32(model, folder)
    to_multi_head_attention(model, geometry.vision.heads)
    return widened
