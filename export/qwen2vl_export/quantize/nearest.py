"""Quantization by rounding to nearest, without a look at activations: the baseline of all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import Weight
from qwen2vl_export.quantize.forms import kept_blocks, nearest_blocks, nearest_rows, packed
from qwen2vl_export.quantize.tables import TableQuantizer
from qwen2vl_export.sources import CheckpointSource


class NearestSource:
    """Gives a bundle's weights, quantized ones a matrix at a time; all else as the checkpoint has it."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._plain = CheckpointSource(checkpoint)
        self._tables = TableQuantizer(checkpoint)
        self._kept: dict[str, np.ndarray] = {}  # scales and zero points of the matrix before

    def blocks(self, weight: Weight) -> Iterator[np.ndarray]:
        """Yield a weight's bytes; a matrix' codes come before its scales and zero points."""
        if weight.name in self._kept:
            yield self._kept.pop(weight.name)
        elif weight.element_type == TensorProto.UINT8:
            yield from self._tables.codes(weight, self._kept)
        elif weight.element_type == TensorProto.UINT4:
            kept = kept_blocks(self._checkpoint.quantized(weight.source))
            blocks = kept or nearest_blocks(self._matrix(weight), 4)
            self._kept[f"{weight.name}.scale"] = blocks.scales
            self._kept[f"{weight.name}.zero_point"] = packed(blocks.zero_points)
            yield packed(blocks.codes)
        elif weight.element_type == TensorProto.INT8:
            codes, self._kept[f"{weight.name}.scale"] = nearest_rows(self._matrix(weight))
            yield np.ascontiguousarray(codes.T)
        else:
            yield from self._plain.blocks(weight)

    def _matrix(self, weight: Weight) -> np.ndarray:
        """Read the source as float32 [N, K]."""
        return self._checkpoint.read_rows(weight, 0, weight.rows).astype(np.float32)
