"""From uint8 frames to the vision tower's input: size, bicubic resize, normalisation, patches.

The reference is transformers' slow `Qwen2VLImageProcessor`; its float32 values are reproduced bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qwen2vl_rt import _core
from qwen2vl_rt.errors import BundleError, InputError, PromptTooLongError
from qwen2vl_rt.processing.options import VisualOptions

# Published with the model: what the processor class uses where the configuration is silent.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_DEFAULT_MIN_PIXELS = 56 * 56
_DEFAULT_MAX_PIXELS = 28 * 28 * 1280
# The model's utilities' limits, in visual tokens, for a size that the caller asks for.
_MIN_TOKENS, _MAX_TOKENS = 4, 16384


@dataclass(frozen=True, eq=False)
class PixelSettings:
    """What a bundle's preprocessor_config.json says about pixels.

    Attributes:
        min_pixels: default lower limit of a resized picture, pixels.
        max_pixels: default upper limit, pixels.
        patch_size: side of a patch, pixels.
        temporal_patch_size: frames in a patch.
        merge_size: patches on a side of one visual token.
        table: float32 [3, 256], the normalised value of each byte of red, green and blue.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    table: np.ndarray = field(repr=False)

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        """Floats in one patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_file(cls, path: Path) -> PixelSettings:
        """Reads preprocessor_config.json. Raises BundleError on what cannot be used."""
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read: {error}") from None
        if not isinstance(config, dict):
            raise BundleError(f"{path}: holds no JSON object")
        try:
            return cls.from_config(config)
        except (BundleError, InputError, TypeError, ValueError, KeyError) as error:
            raise BundleError(f"{path}: {error}") from None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PixelSettings:
        """Settings from the object of a preprocessor_config.json."""
        size = config.get("size") or {}
        if not isinstance(size, Mapping):
            raise BundleError(f"size must be an object with shortest_edge and longest_edge, not {size!r:.80}")
        if config.get("do_resize", True) is not True:
            raise BundleError("do_resize is false: pictures of any size cannot be prepared")
        if config.get("resample", 3) != 3:
            raise BundleError(f"resample is {config['resample']!r}: only 3 (bicubic) is supported")

        def number(value: Any, default: int) -> int:
            value = default if value is None else value
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BundleError(f"expected a positive whole number, found {value!r}")
            return value

        return cls(
            # min_pixels and max_pixels are the older spelling and win, as in transformers.
            min_pixels=number(config.get("min_pixels", size.get("shortest_edge")), _DEFAULT_MIN_PIXELS),
            max_pixels=number(config.get("max_pixels", size.get("longest_edge")), _DEFAULT_MAX_PIXELS),
            patch_size=number(config.get("patch_size"), 14),
            temporal_patch_size=number(config.get("temporal_patch_size"), 2),
            merge_size=number(config.get("merge_size"), 2),
            table=value_table(
                rescale_factor=config.get("rescale_factor", 1 / 255)
                if config.get("do_rescale", True)
                else 1.0,
                mean=config.get("image_mean") or _CLIP_MEAN
                if config.get("do_normalize", True)
                else (0.0,) * 3,
                std=config.get("image_std") or _CLIP_STD if config.get("do_normalize", True) else (1.0,) * 3,
            ),
        )

    def limited(self, max_pixels: int) -> PixelSettings:
        """These settings with another upper limit of a resized picture."""
        return replace(self, max_pixels=max_pixels, min_pixels=min(self.min_pixels, max_pixels))

    def resized(
        self, height: int, width: int, options: VisualOptions, limits: tuple[float, float] | None = None
    ) -> tuple[int, int]:
        """The (height, width) in pixels to which a picture of height x width is brought.

        limits: (min_pixels, max_pixels) that hold where the options leave them open (default: the bundle's).
        Raises InputError for an empty picture or an aspect ratio over 200.
        """
        factor = self.factor
        if options.resized_height is not None and options.resized_width is not None:
            low, high = _MIN_TOKENS * factor**2, _MAX_TOKENS * factor**2
            # The picture's own shape is checked too: a ratio over 200 stays refused.
            _core.smart_resize(height, width, factor, low, high)
            wanted_height, wanted_width = int(options.resized_height), int(options.resized_width)
            return _core.smart_resize(
                max(wanted_height, factor), max(wanted_width, factor), factor, low, high
            )
        low, high = limits or (self.min_pixels, self.max_pixels)
        if options.max_pixels is not None:
            high = options.max_pixels
            low = min(low, high)
        if options.min_pixels is not None:
            low = options.min_pixels
            high = max(low, high)
        return _core.smart_resize(height, width, factor, low, high)


def value_table(rescale_factor: float, mean: Any, std: Any) -> np.ndarray:
    """float32 [3, 256]: (byte * rescale_factor - mean) / std, in the reference's order and precisions.

    transformers rescales in float64, rounds to float32, then subtracts and divides in float32.
    """
    bytes_ = np.arange(256, dtype=np.uint8).astype(np.float64)
    rescaled = (bytes_ * rescale_factor).astype(np.float32)
    channels = np.ones(3, dtype=np.float32)
    mean = np.asarray(mean, dtype=np.float32) * channels
    std = np.asarray(std, dtype=np.float32) * channels
    with np.errstate(divide="ignore", invalid="ignore"):
        table = (rescaled[None, :] - mean[:, None]) / std[:, None]
    if table.shape != (3, 256) or not np.isfinite(table).all():
        raise BundleError(f"image_mean {mean} and image_std {std} give no usable pixel values")
    return np.ascontiguousarray(table)


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
