"""Where a bundle's numbers come from: something that gives a weight's stored bytes, block by block.

`weights.py` asks for the weights of a file in their order, one at a time, and each block once. So a source
may work ahead and keep what the next weights need (a quantizer does a layer at a time), and memory stays
bounded by that and not by the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import Weight
from qwen2vl_rt.errors import CheckpointError
from qwen2vl_rt.number_formats import format_named

BLOCK_BYTES = 32 * 2**20


class Source(Protocol):
    """Gives weights as they are stored."""

    def blocks(self, weight: Weight) -> Iterator[np.ndarray]:
        """Yield the tensor's bytes in order, as contiguous arrays of `weight.nbytes` bytes together."""


class CheckpointSource:
    """The checkpoint's own values, cast to the graph's number format and transposed where the graph wants.

    What is in memory at a time: a few blocks, and for a transposed matrix its source as it is stored (at most
    29568 x 8192 numbers in the published models: 484 MB at 16 bit, 242 MB as a quantized layer's codes). The
    large tables (embedding, lm_head) are never transposed and never whole in memory.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    def blocks(self, weight: Weight) -> Iterator[np.ndarray]:
        """Yield the tensor in blocks of about BLOCK_BYTES.

        Raises CheckpointError for a tensor that cannot be read or whose values the format cannot hold.
        """
        rows, columns, number = weight.rows, weight.columns, format_named(weight.element_type).numpy
        if weight.transposed:
            packed = self._checkpoint.quantized(weight.source)
            source = None if packed else self._checkpoint.read_rows(weight, 0, rows)  # [rows, columns]
            step = max(1, BLOCK_BYTES // (rows * 4))
            for start in range(0, columns, step):
                stop = min(start + step, columns)
                block = packed.dequantized(start, stop) if packed else source[:, start:stop]
                yield _cast(np.ascontiguousarray(block.T), number, weight)
        else:
            step = max(1, BLOCK_BYTES // (columns * 4))
            for start in range(0, rows, step):
                block = self._checkpoint.read_rows(weight, start, min(start + step, rows))
                yield _cast(block, number, weight)


def _cast(block: np.ndarray, number: np.dtype, weight: Weight) -> np.ndarray:
    """Convert to `number`, rounding to nearest even."""
    if block.dtype == number:
        return block
    if number == np.float16:
        return _to_float16(block.astype(np.float32), weight)
    return block.astype(number)


def _to_float16(block: np.ndarray, weight: Weight) -> np.ndarray:
    """Convert float32 to float16; a finite value that would become infinite is refused."""
    with np.errstate(over="ignore"):
        narrow = block.astype(np.float16)
    lost = np.isinf(narrow) & np.isfinite(block)
    if lost.any():
        raise CheckpointError(
            f"tensor {weight.source} holds {float(block[lost][0]):g}, beyond float16's 65504; "
            "use --precision bf16"
        )
    return narrow
