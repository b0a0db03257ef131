"""Crowded pictures without questions: many letters, digits or objects at once, for the vision tower alone.

A picture of thirty letters costs no decoder time and says as much about letters as ten questions.
"""

from __future__ import annotations

import numpy as np

from . import digits, draw, phrases, scenes, text
from .sample import Block, Cells, Sample, pick


def drill(rng: np.random.Generator, width: int, height: int) -> Sample:
    """One crowded picture of a random kind."""
    kind = rng.random()
    if kind < 0.55:
        return letters(rng, width, height)
    return handwriting(rng, width, height) if kind < 0.75 else objects(rng, width, height)


def letters(rng: np.random.Generator, width: int, height: int) -> Sample:
    """Lines of random capitals or digits, each in its own font, size and angle."""
    canvas = np.array(draw.background(rng, width, height), np.float32)
    if canvas.std() > 20:
        canvas = canvas * 0.35 + draw.muted_colour(rng) * 0.65
    ink, glyphs, top = text.contrasting_ink(rng, canvas), [], 0
    while top < height - 31:
        band = min(height - top, int(np.exp(rng.uniform(np.log(32), np.log(90)))))
        least, most = max(1, width // band), max(2, 2 * width // band)
        count = int(rng.integers(least, most + 1))
        symbols = "0123456789" if rng.random() < 0.3 else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        drawn = None
        while drawn is None and count:
            string = "".join(symbols[i] for i in rng.integers(0, len(symbols), count))
            drawn = text.text_layer(rng, string, width, band, ink)
            count -= 1
        if drawn is not None:
            page, boxes = drawn
            draw.paste(canvas, np.asarray(page), 0, top)
            glyphs.append(boxes + np.array((0, top, 0, 0, 0), np.float32))
        top += band
    cells = Cells.empty(1, height, width)
    text.label_glyphs(cells, np.concatenate(glyphs) if glyphs else np.empty((0, 5)), width, height)
    return Sample([Block(draw.Camera(rng).take(canvas)[None], cells)])


def handwriting(rng: np.random.Generator, width: int, height: int) -> Sample:
    """A sheet of handwritten digits of about one size."""
    images, labels = digits.handwriting(False)
    canvas = np.array(np.broadcast_to(draw.muted_colour(rng), (height, width, 3)), np.float32)
    ink, glyphs = text.contrasting_ink(rng, canvas), []
    side = int(min(width, height, np.exp(rng.uniform(np.log(28), np.log(96)))))
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            w, h = (max(16, int(side * rng.uniform(0.7, 1.0))) for _ in range(2))
            index = int(rng.integers(len(labels)))
            x, y = left + int(rng.integers(side - w + 1)), top + int(rng.integers(side - h + 1))
            draw.paste(canvas, digits.pen_strokes(rng, images[index], w, h, ink), x, y)
            glyphs.append((x + w / 2, y + h / 2, w * 0.3, h * 0.45, int(labels[index]) + 1))
    cells = Cells.empty(1, height, width)
    text.label_glyphs(cells, np.array(glyphs), width, height)
    return Sample([Block(draw.Camera(rng).take(canvas)[None], cells)])


def objects(rng: np.random.Generator, width: int, height: int) -> Sample:
    """A table with many objects."""
    canvas = draw.background(rng, width, height)
    wanted = [
        (pick(rng, phrases.COLOUR_NAMES), pick(rng, phrases.SHAPES)) for _ in range(int(rng.integers(4, 12)))
    ]
    things = scenes.place(rng, canvas, wanted, sizes=(0.25, 0.7), apart=0.0)
    canvas, owner = scenes.render(rng, canvas, things, shadows=rng.random() < 0.4)
    cells = Cells.empty(1, height, width)
    scenes.label_cells(cells, 0, owner, things, [thing.box for thing in things])
    return Sample([Block(draw.Camera(rng).take(canvas)[None], cells)])
