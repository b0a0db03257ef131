"""Writing the bundle's weight files: one tensor after the other, as `sources.py` gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from qwen2vl_export.graph import Weight
from qwen2vl_export.sources import Source
from qwen2vl_rt.bundle import EMBEDDING, FileEntry

# Alignment of tensors of a page or more, so that they can be mapped, and of small ones. In the embedding's
# file every tensor starts a page: the runtime finds a table's parts from its shape, without a graph.
PAGE, CACHE_LINE = 4096, 64

Places = dict[str, tuple[int, int]]


def layout(weights: Iterable[Weight]) -> tuple[Places, int]:
    """Return where each of a file's weights lies in it, as (offset, length) in bytes, and the file's size."""
    places: Places = {}
    end = 0
    for weight in weights:
        alignment = PAGE if weight.nbytes >= PAGE or weight.file == EMBEDDING else CACHE_LINE
        places[weight.name] = (end + -end % alignment, weight.nbytes)
        end = sum(places[weight.name])
    return places, end


def write_weights(
    file: Path,
    weights: Iterable[Weight],
    source: Source,
    progress: Callable[[int], None] = lambda count: None,
) -> FileEntry:
    """Write `weights` into `file` as `layout` places them, and return the file's entry in the manifest.

    `progress` is called with the number of bytes written since its last call. What `source` raises and
    OSError from writing pass through.
    """
    weights = list(weights)
    places, _ = layout(weights)
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
            for block in source.blocks(weight):
                put(memoryview(block.reshape(-1).view(np.uint8)))
            if position != sum(places[weight.name]):
                raise AssertionError(f"{weight.name} takes {weight.nbytes} bytes, its source gave others")
    return FileEntry(position, digest.hexdigest())
