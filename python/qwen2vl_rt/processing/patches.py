"""From uint8 frames to the vision tower's input: bicubic resize, normalisation, patches."""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
from PIL import Image

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, PromptTooLongError
from qwen2vl_rt.processing.pixels import PixelSettings


@functools.cache
def pillow_starts_vertically() -> bool:
    """Whether the installed Pillow resizes very tall pictures vertically first (newer releases do).

    The order of the two passes shows in the last bit of some pixels. The runtime follows the installed
    Pillow, so that its pixels equal those of the reference run in the same environment.
    """
    frame = (np.arange(8 * 9 * 3, dtype=np.uint32) * 2654435761 >> 13).astype(np.uint8).reshape(8, 9, 3)
    pillow = np.asarray(Image.fromarray(frame).resize((37, 3), Image.Resampling.BICUBIC))
    if np.array_equal(pillow, _core.resize_bicubic(frame, 3, 37, False)):
        return False
    return np.array_equal(pillow, _core.resize_bicubic(frame, 3, 37, True))


class PatchWriter:
    """Takes the frames of one picture or video one by one and fills the vision tower's input with them.

    frames: how many will come: 1 for a picture; an odd video's last frame is repeated.
    height, width: the resized frame, pixels. most_tokens: visual tokens that there is room for.
    `patches` is float32 [ceil(frames / temporal_patch_size), grid_h * grid_w, patch_values], in merge order.
    """

    def __init__(
        self,
        settings: PixelSettings,
        frames: int,
        height: int,
        width: int,
        kind: str,
        most_tokens: int | None = None,
    ):
        self._settings = settings
        self._frames = frames
        self._next = 0
        grid = (height // settings.patch_size, width // settings.patch_size)
        self.grid_thw = (-(-frames // settings.temporal_patch_size), *grid)
        tokens = math.prod(self.grid_thw) // settings.merge_size**2
        if most_tokens is not None and tokens > most_tokens:
            size = f"{width} x {height} pixels" + (f", {frames} frames" if kind == "video" else "")
            raise PromptTooLongError(
                f"it becomes {tokens} visual tokens ({size}), the prompt has room for {max(0, most_tokens)}: "
                "lower max_pixels or, for a video, nframes or fps"
            )
        try:
            self.patches = np.empty((self.grid_thw[0], grid[0] * grid[1], settings.patch_values), np.float32)
        except (MemoryError, ValueError):
            raise InputError(
                f"{frames} frame(s) of {width} x {height} pixels do not fit into memory: lower max_pixels"
            ) from None
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._hash = hashlib.blake2b(f"{kind} {self.grid_thw}".encode(), digest_size=32)

    def add(self, frame: np.ndarray) -> None:
        """Resizes and writes the next frame, uint8 [height, width, 3] of any size and strides."""
        temporal = self._settings.temporal_patch_size
        last = self._next + 1 == self._frames
        height, width, _ = self._pixels.shape
        _core.write_frame(
            frame,
            self.patches,
            self._next,
            temporal - self._next % temporal if last else 1,
            height,
            width,
            self._settings.table,
            self._settings.patch_size,
            temporal,
            self._settings.merge_size,
            pillow_starts_vertically(),
            self._pixels,
        )
        self._hash.update(self._pixels)
        self._next += 1

    @property
    def complete(self) -> bool:
        """Whether all frames have come."""
        return self._next == self._frames

    def digest(self) -> bytes:
        """32 bytes that identify the content: blake2b of the kind, the grid and the frames' pixels."""
        return self._hash.digest()
