"""Quantization by rounding to nearest, without a look at activations: the baseline of all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import SCALE, ZERO_POINT, Weight
from qwen2vl_export.quantize.forms import kept_blocks, nearest_blocks, nearest_rows, packed
from qwen2vl_export.quantize.parameters import pieces
from qwen2vl_export.quantize.tables import TableQuantizer
from qwen2vl_export.sources import CheckpointSource


class NearestSource:
    """Gives a bundle's weights, matrices a piece at a time; what is not quantized comes unchanged."""

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
            yield from self._four_bits(weight)
        elif weight.element_type == TensorProto.INT8:
            codes = np.empty((weight.columns, weight.rows), np.int8)
            scales = self._kept[f"{weight.name}{SCALE}"] = np.empty(weight.rows, np.float32)
            for rows, matrix in pieces(self._checkpoint, weight):
                found, scales[rows] = nearest_rows(matrix)
                codes[:, rows] = found.T
            yield codes
        else:
            yield from self._plain.blocks(weight)

    def _four_bits(self, weight: Weight) -> Iterator[np.ndarray]:
        if blocks := kept_blocks(self._checkpoint.packed.get(weight.source)):
            found = [(blocks.scales, blocks.zero_points)]
            yield packed(blocks.codes)
        else:
            found = []
            for _, matrix in pieces(self._checkpoint, weight):
                blocks = nearest_blocks(matrix, 4)
                found.append((blocks.scales, blocks.zero_points))
                yield packed(blocks.codes)
        scales, zero_points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        self._kept[f"{weight.name}{SCALE}"] = scales
        self._kept[f"{weight.name}{ZERO_POINT}"] = packed(zero_points)
