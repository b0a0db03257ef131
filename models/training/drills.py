"""Crowded pictures without questions: many letters, digits or objects at once, for the vision tower alone.

A picture of thirty letters costs no decoder time and says as much about letters as ten questions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from . import digits, draw, phrases, scenes, text
from .sample import GLYPHS, Block, Cells, Sample, pick


def drill(rng: np.random.Generator, width: int, height: int) -> Sample:
    """One crowded picture of a random kind."""
    kind = rng.random()
    if kind < 0.55:
        return letters(rng, width, height)
    return handwriting(rng, width, height) if kind < 0.75 else objects(rng, width, height)


def letters(rng: np.random.Generator, width: int, height: int) -> Sample:
    """Lines of random capitals or digits, each line in its own font, size and angle."""

    def glyphs(count: int) -> list[tuple[Image.Image, int]]:
        file = pick(rng, text.font_files())
        first, last = (0, 10) if rng.random() < 0.3 else (10, len(GLYPHS))
        indices = rng.integers(first, last, count)
        return [(glyph_mask(file, GLYPHS[i]), int(i) + 1) for i in indices]

    return lines_of_glyphs(rng, width, height, glyphs, (0.68, 1.0))


def handwriting(rng: np.random.Generator, width: int, height: int) -> Sample:
    """Lines of handwritten digits."""
    images, labels = digits.handwriting(False)

    def glyphs(count: int) -> list[tuple[Image.Image, int]]:
        indices = rng.integers(0, len(labels), count)
        return [(Image.fromarray(images[i]), int(labels[i]) + 1) for i in indices]

    return lines_of_glyphs(rng, width, height, glyphs, (0.8, 1.1))


@functools.lru_cache(20_000)
def glyph_mask(file: str, glyph: str) -> Image.Image:
    """One capital or digit of a font in a square of 48 pixels, as tall as the font's capitals; mode L."""
    face = text.font(file, 54)
    left, top, right, bottom = face.getbbox(glyph)
    mask = Image.new("L", (48, 48), 0)
    at = (24 - (left + right) / 2, 24 - (top + bottom) / 2)
    ImageDraw.Draw(mask).text(at, glyph, font=face, fill=255)
    return mask


def lines_of_glyphs(
    rng: np.random.Generator,
    width: int,
    height: int,
    glyphs: Callable[[int], list[tuple[Image.Image, int]]],
    pitches: tuple[float, float],
) -> Sample:
    """A page of lines; glyphs(n) draws n masks (mode L) and their classes, pitches bounds a glyph's width by
    its height.

    A third of the pages is easy: each glyph fills one cell or 2x2 cells and hardly strays. A cell alone shows
    which it is, so these are learnt in minutes, and glyphs of other sizes and places then follow.
    """
    canvas = np.array(draw.background(rng, width, height), np.float32)
    if canvas.std() > 20:
        canvas = canvas * 0.35 + draw.muted_colour(rng) * 0.65
    ink = np.array(text.contrasting_ink(rng, canvas), np.float32)
    coverage, boxes, top = np.zeros((height, width), np.uint8), [], 0
    easy = rng.random() < 0.33
    while top < height - 20:
        size = int(np.exp(rng.uniform(np.log(22), np.log(min(height, 150)))))
        pitch = size * rng.uniform(*pitches)
        if easy:
            pitch = size = int(rng.choice((28, 28, 56)))
        size, angle, shear = min(size, height - top), 0.0, 0.0
        if rng.random() < 0.6:
            angle, shear = rng.uniform(-0.16, 0.16), rng.uniform(-0.1, 0.1)
        left = 0.0 if easy else float(rng.uniform(0, min(size, width / 4)))
        count = max(1, int((width - left) / pitch))
        for mask, glyph in glyphs(count):
            x = int(min(left, width - size)) if size <= width else 0
            side = min(size, width)
            drawn = leaning(rng, mask, side, size, angle, shear)
            region = coverage[top : top + size, x : x + side]
            np.maximum(region, np.asarray(drawn), out=region)
            boxes.append((x + side / 2, top + size / 2, pitch * 0.42, size * 0.42, glyph))
            left += pitch
        top += size
    alpha = coverage[..., None].astype(np.float32) / 255
    if rng.random() < 0.4:  # a harder edge, as a pen's
        alpha = ((alpha - rng.uniform(0.15, 0.35)) * rng.uniform(1.4, 2.5)).clip(0, 1)
    canvas += (ink - canvas) * alpha
    cells = Cells.empty(1, height, width)
    text.label_glyphs(cells, np.array(boxes, np.float32).reshape(-1, 5), width, height)
    return Sample([Block(draw.Camera(rng).take(canvas)[None], cells)])


def leaning(
    rng: np.random.Generator, mask: Image.Image, width: int, height: int, angle: float, shear: float
) -> Image.Image:
    """The mask grown to height pixels, turned by angle (radians) and sheared; size and place stray."""
    stray, grow, stretch = rng.uniform(-0.06, 0.06, 2), rng.uniform(0.9, 1.15), rng.uniform(0.85, 1.15)
    scale = mask.width / (height * grow)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    # From a pixel of the result to one of the mask: x' = a x + b y + c, y' = d x + e y + f.
    a, b, d, e = cos / stretch, sin + shear * scale, -sin / stretch, cos
    c, f = mask.width / 2 - np.array((a + b, d + e)) * height / 2 - stray * mask.width
    return mask.transform(
        (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC
    )


def objects(rng: np.random.Generator, width: int, height: int) -> Sample:
    """A table with many objects."""
    canvas = draw.background(rng, width, height)
    wanted = [
        (pick(rng, phrases.COLOUR_NAMES), pick(rng, phrases.SHAPES)) for _ in range(int(rng.integers(4, 12)))
    ]
    things = scenes.place(rng, canvas, wanted, sizes=(0.25, 0.7), apart=0.03)
    canvas, owner = scenes.render(rng, canvas, things, shadows=rng.random() < 0.4)
    cells = Cells.empty(1, height, width)
    scenes.label_cells(cells, 0, owner, things, [thing.box for thing in things])
    return Sample([Block(draw.Camera(rng).take(canvas)[None], cells)])
