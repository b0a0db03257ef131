"""What a bundle says about pixels: sizes, and the values that bytes become.

The reference is transformers' slow `Qwen2VLImageProcessor`; its float32 values are reproduced bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import PREPROCESSOR_CONFIG
from qwen2vl_rt.errors import BundleError, InputError
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
        planned_pixels: what a session's memory is planned for; None without a session.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    table: np.ndarray = field(repr=False)
    planned_pixels: int | None = None

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        """Floats in one patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_folder(cls, folder: Path) -> PixelSettings:
        """Settings of a bundle or checkpoint. Raises BundleError on what cannot be used."""
        path, config = find_config(folder)
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

        def number(*values: Any) -> int:
            value = next(value for value in values if value is not None)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BundleError(f"expected a positive whole number, found {value!r}")
            return value

        return cls(
            # min_pixels and max_pixels are the older spelling and win, as in transformers; null is unset.
            min_pixels=number(config.get("min_pixels"), size.get("shortest_edge"), _DEFAULT_MIN_PIXELS),
            max_pixels=number(config.get("max_pixels"), size.get("longest_edge"), _DEFAULT_MAX_PIXELS),
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

    def problem(self, vision: Any) -> str | None:
        """What the vision tower's geometry says otherwise, or None."""
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if getattr(vision, name) != getattr(self, name):
                return f"has {name} {getattr(self, name)}, the model {getattr(vision, name)}"
        return None

    def limited(self, max_pixels: int) -> PixelSettings:
        """These settings with another upper limit of a resized picture, that of a session's memory."""
        low = min(self.min_pixels, max_pixels)
        return replace(self, max_pixels=max_pixels, min_pixels=low, planned_pixels=max_pixels)

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
        size = _core.smart_resize(height, width, factor, low, high)
        # Enlarging to `low` rounds up, beyond `high` where the two are close.
        if self.planned_pixels is not None and high <= self.planned_pixels < size[0] * size[1]:
            size = _core.smart_resize(height, width, factor, 1, high)
        return size


def find_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Of a bundle or checkpoint: the file that says how pictures are prepared, and the object in it.

    preprocessor_config.json, or else the processor_config.json that transformers 5 saves in its place. Raises
    BundleError where there is none or it cannot be read.
    """
    path, nested = folder / PREPROCESSOR_CONFIG, folder / "processor_config.json"
    if inside := nested.is_file() and not path.is_file():
        path = nested
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; copy or download it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    if inside and isinstance(config, dict):
        config = config.get("image_processor")
    if not isinstance(config, dict):
        raise BundleError(f"{path}: holds no JSON object{' image_processor' if inside else ''}")
    return path, config


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
