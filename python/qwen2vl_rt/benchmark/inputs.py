"""Random tokens and pictures: speed doesn't depend on what they show."""

from __future__ import annotations

import numpy as np

from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.processing.processor import Visual


def random_tokens(geometry: Geometry, length: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [length] of ordinary text: special tokens have the vocabulary's last ids."""
    ids = geometry.special_ids
    first_special = min(ids.image_pad, ids.video_pad, ids.vision_start, *ids.eos)
    return rng.integers(0, first_special, length, dtype=np.int32)


def random_visual(geometry: Geometry, width: int, height: int, rng: np.random.Generator) -> Visual:
    """A prepared picture of random patches; width and height in pixels, multiples of the merged patch."""
    side = geometry.vision.patch_size
    grid = (1, height // side, width // side)
    patches = rng.standard_normal((1, grid[1] * grid[2], geometry.vision.patch_values), dtype=np.float32)
    return Visual("image", grid, patches, width, height, b"")


def random_picture(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [height, width, 3] of noise, as a camera would hand it over."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
