"""Embedding and lm_head: 8 bit in blocks, rounded to nearest, streamed row by row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import SCALE, ZERO_POINT, Weight
from qwen2vl_export.quantize.forms import nearest_blocks
from qwen2vl_export.sources import BLOCK_BYTES


class TableQuantizer:
    """Gives a table's codes, and keeps the scales that go behind them (1/32 of the codes' size)."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    def codes(self, weight: Weight, kept: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the codes; afterwards `kept` has the arrays of `weight`'s scale and zero_point."""
        scales, zero_points = [], []
        step = max(1, BLOCK_BYTES // (weight.columns * 4))
        for start in range(0, weight.rows, step):
            rows = self._checkpoint.read_rows(weight, start, min(start + step, weight.rows))
            blocks = nearest_blocks(rows.astype(np.float32), 8)
            scales.append(blocks.scales)
            zero_points.append(blocks.zero_points)
            yield blocks.codes
        kept[f"{weight.name}{SCALE}"] = np.concatenate(scales)
        kept[f"{weight.name}{ZERO_POINT}"] = np.concatenate(zero_points)
