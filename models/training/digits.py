"""Real handwritten digits (the 1,797 of scikit-learn) as pen strokes on paper; one part is held out."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from . import draw, phrases
from .sample import Block, Cells, Sample, Turn, pick
from .text import contrasting_ink, label_glyphs


@functools.cache
def handwriting(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [n, 8, 8] ink, labels [n]) of one split: 1,437 to train on, 360 held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(20240).permutation(len(data.target))
    chosen = order[:360] if held_out else order[360:]
    return (data.images[chosen] * (255 / 16)).astype(np.uint8), data.target[chosen]


def pen_strokes(
    rng: np.random.Generator, image: np.ndarray, width: int, height: int, ink: tuple[int, int, int]
) -> np.ndarray:
    """One 8x8 digit, grown, a little slanted and turned: uint8 [height, width, 4]"""
    stroke = Image.fromarray(image)
    if rng.random() < 0.7:
        grown = stroke.resize((64, 64), Image.Resampling.BICUBIC)
        shear = rng.uniform(-0.2, 0.2)
        grown = grown.transform(
            (64, 64), Image.Transform.AFFINE, (1, shear, -32 * shear, 0, 1, 0), Image.Resampling.BILINEAR
        )
        stroke = grown.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    strength = np.asarray(stroke.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    if rng.random() < 0.5:  # a harder edge, as a pen's
        strength = ((strength - rng.uniform(40, 90)) * rng.uniform(1.4, 2.5)).clip(0, 255)
    cutout = np.empty((height, width, 4), np.uint8)
    cutout[..., :3], cutout[..., 3] = ink, strength
    return cutout


def handwritten(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    questions: int = 1,
    held_out: bool = False,
    index: int | None = None,
) -> Sample:
    """One picture with one handwritten digit."""
    images, labels = handwriting(held_out)
    index = int(rng.integers(len(labels))) if index is None else index
    side = min(width, height)
    size = int(side * rng.uniform(0.5, 0.98))
    stretch = rng.uniform(0.85, 1.18)
    ink_w, ink_h = min(side, int(size * stretch)), min(side, int(size / stretch))
    canvas = np.array(np.broadcast_to(draw.muted_colour(rng), (height, width, 3)), np.float32)
    ink = contrasting_ink(rng, canvas)
    cutout = pen_strokes(rng, images[index], ink_w, ink_h, ink)
    x, y = int(rng.integers(width - ink_w + 1)), int(rng.integers(height - ink_h + 1))
    draw.paste(canvas, cutout, x, y)
    cells = Cells.empty(1, height, width)
    glyph = int(labels[index]) + 1
    label_glyphs(
        cells, np.array([[x + ink_w / 2, y + ink_h / 2, ink_w * 0.3, ink_h * 0.45, glyph]]), width, height
    )
    taken = draw.Camera(rng).take(canvas)
    turn = Turn("handwriting", pick(rng, phrases.READ_DIGIT), str(labels[index]), [(0, 0)])
    return Sample([Block(taken[None], cells)], [turn])
