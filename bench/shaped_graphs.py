"""Graphs of any geometry with arbitrary weights that never touch a disk, for what depends on shapes only."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from qwen2vl_export.graph import SCALE, ZERO_POINT, Graph


def shaped(graph: Graph) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The graph's model and weights: codes of all values, small numbers elsewhere, no zero points to fold."""
    rng = np.random.default_rng(0)
    weights = {}
    for weight in graph.weights:
        if weight.name.endswith(ZERO_POINT):
            middle = 0x88 if weight.element_type == TensorProto.UINT4 else 0x80
            weights[weight.name] = np.full(weight.nbytes, middle, np.uint8)
        elif weight.element_type in (TensorProto.UINT4, TensorProto.UINT8, TensorProto.INT8):
            weights[weight.name] = rng.integers(0, 256, weight.nbytes, np.uint8)
        else:
            dtype = helper.tensor_dtype_to_np_dtype(weight.element_type)
            numbers = rng.standard_normal(4096, np.float32).astype(dtype) * dtype.type(0.02)
            if weight.name.endswith(SCALE):
                numbers = np.abs(numbers) + dtype.type(0.001)
            weights[weight.name] = np.resize(numbers, weight.shape)
    return graph.model({weight.name: (0, weight.nbytes) for weight in graph.weights}), weights
