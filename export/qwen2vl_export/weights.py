"""Writing the bundle's weight files: one tensor after the other, cast and transposed in blocks of bounded
size.

What is in memory at a time: one block, and for a transposed matrix its source (at most 29568 x 8192
numbers in the published models, 484 MB at 16 bit). The large tables (embedding, lm_head) are never
transposed and never whole in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import Weight
from qwen2vl_rt.bundle import FileEntry
from qwen2vl_rt.errors import CheckpointError

NUMBERS = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16)}
BLOCK_BYTES = 32 * 2**20
PAGE, CACHE_LINE = (
    4096,
    64,
)  # alignment of tensors of a page or more, so that they can be mapped, and of small ones

Places = dict[str, tuple[int, int]]


def layout(weights: Iterable[Weight], precision: str) -> tuple[Places, int]:
    """Return where each of `weights` lies in its file, as (offset, length) in bytes, and the file's size."""
    places: Places = {}
    end = 0
    for weight in weights:
        length = weight.rows * weight.columns * NUMBERS[precision].itemsize
        alignment = PAGE if length >= PAGE else CACHE_LINE
        places[weight.name] = (end + -end % alignment, length)
        end = sum(places[weight.name])
    return places, end


def write_weights(
    file: Path,
    weights: Iterable[Weight],
    checkpoint: Checkpoint,
    precision: str,
    progress: Callable[[int], None] = lambda count: None,
) -> FileEntry:
    """Write `weights` into `file` as `layout` places them, and return the file's entry in the manifest.

    `progress` is called with the number of bytes written since its last call. Raises CheckpointError for a
    tensor that cannot be read or whose values the precision cannot hold; OSError from writing passes through.
    """
    weights = list(weights)
    places, size = layout(weights, precision)
    digest, position = hashlib.sha256(), 0
    with open(file, "wb", buffering=0) as stream:

        def put(data: memoryview) -> None:
            nonlocal position
            digest.update(data)
            position += len(data)
            progress(len(data))
            while data:  # an unbuffered write may take only a part
                data = data[stream.write(data) :]

        for weight in weights:
            put(memoryview(bytes(places[weight.name][0] - position)))
            for block in _blocks(weight, checkpoint, NUMBERS[precision]):
                put(memoryview(block.reshape(-1).view(np.uint8)))
    return FileEntry(size, digest.hexdigest())


def _blocks(weight: Weight, checkpoint: Checkpoint, number: np.dtype) -> Iterator[np.ndarray]:
    """Yield the tensor as stored in the bundle, as contiguous blocks of about BLOCK_BYTES."""
    rows, columns = weight.rows, weight.columns
    if weight.transposed:
        source = checkpoint.read_rows(weight, 0, rows)  # [rows, columns]
        step = max(1, BLOCK_BYTES // (rows * 4))
        for start in range(0, columns, step):
            yield _cast(np.ascontiguousarray(source[:, start : start + step].T), number, weight)
    else:
        step = max(1, BLOCK_BYTES // (columns * 4))
        for start in range(0, rows, step):
            yield _cast(checkpoint.read_rows(weight, start, min(start + step, rows)), number, weight)


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
