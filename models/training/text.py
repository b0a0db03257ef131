"""Printed text: numbers and short upper-case words in real fonts, a little rotated."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import draw, phrases
from .sample import GLYPHS, MOST_COUNTED, PATCH, Block, Cells, Sample, Turn, patches_of_cells, pick

WORDS = tuple(Path(__file__).with_name("words_training.txt").read_text().split())
HELD_OUT_WORDS = tuple(Path(__file__).with_name("words_held_out.txt").read_text().split())
# A few hundred words are soon known by heart, and others are then read as the nearest of them.
COMMON_WORDS = WORDS + tuple(Path(__file__).with_name("words_common.txt").read_text().split())

SMALLEST = 30.0  # pixels an em: capitals at least one and a half patches tall

# Parts of names of font files that aren't upright text of ordinary weight and width.
ODD_FONTS = (
    *("Symbol", "Dingbat", "Emoji", "Math", "Zapf", "D050000L", "Initials", "Keyboard", "Icon", "D05"),
    *(
        "Italic",
        "Oblique",
        "Light",
        "Thin",
        "Hairline",
        "Black",
        "Heavy",
        "Condensed",
        "Chancery",
        "Z003",
        "Outline",
    ),
    *("Display", "Biolinum_K", "Libertine_DR", "Libertine_I", "Libertine_RZ"),
)


@functools.cache
def font_files() -> tuple[str, ...]:
    """Every plain text font under TINY_FONTS (folders separated by ':'), else the system's."""
    folders = os.environ.get("TINY_FONTS", "/usr/share/fonts/truetype").split(":")
    files = [
        path
        for folder in folders
        for path in Path(folder).rglob("*.[to]tf")
        if not any(word in path.name for word in ODD_FONTS)
    ]
    if not files:
        raise SystemExit(f"no .ttf or .otf font under {folders}: install one or set TINY_FONTS")
    return tuple(str(path) for path in sorted(files, key=lambda path: path.name))


@functools.cache
def font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def random_string(
    rng: np.random.Generator,
    most: int,
    words: tuple[str, ...] = WORDS,
    shares: tuple[float, float] = (0.4, 0.3),
) -> str:
    """A number, a word, or random capitals, of at most `most` characters; shares of the first two."""
    kind, (numbers, listed) = rng.random(), shares
    if kind < numbers:
        return "".join(str(d) for d in rng.integers(0, 10, rng.integers(1, min(most, 6) + 1)))
    if kind < numbers + listed:
        fitting = [word for word in words if len(word) <= most]
        if fitting:
            return pick(rng, fitting)
    return "".join(chr(65 + c) for c in rng.integers(0, 26, rng.integers(1, most + 1)))


def text_layer(
    rng: np.random.Generator, string: str, width: int, height: int, ink: tuple[int, ...]
) -> tuple[Image.Image, np.ndarray] | None:
    """The string drawn on a transparent layer; glyph boxes [n, 5] (cx, cy, half w, half h, class)."""
    file = pick(rng, font_files())
    measure = font(file, 64)
    unit_w = measure.getlength(string) / 64
    angle = float(rng.uniform(-9, 9)) if rng.random() < 0.6 else 0.0
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    largest = min((width - 6) / (unit_w * cos + 0.9 * sin), (height - 6) / (unit_w * sin + 0.9 * cos))
    if largest < SMALLEST:
        return None
    size = int(math.exp(rng.uniform(math.log(max(SMALLEST, largest * 0.35)), math.log(largest))))
    face = font(file, size)
    left, top, right, bottom = face.getbbox(string)
    w, h = right - left, bottom - top
    layer = Image.new("RGBA", (w + 4, h + 4), (*ink, 0))
    ImageDraw.Draw(layer).text((2 - left, 2 - top), string, font=face, fill=(*ink, 255))
    boxes = np.empty((len(string), 5), np.float32)
    for i, glyph in enumerate(string):
        x1, x2 = face.getlength(string[:i]), face.getlength(string[: i + 1])
        boxes[i] = ((x1 + x2) / 2 - left - w / 2, 0, max(3.0, (x2 - x1) / 2), h / 2, GLYPHS.index(glyph) + 1)
    radians = math.radians(angle)
    rotated = layer.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    free_w, free_h = width - rotated.width, height - rotated.height
    if free_w < 0 or free_h < 0:
        return None
    x, y = int(rng.integers(free_w + 1)), int(rng.integers(free_h + 1))
    page = Image.new("RGBA", (width, height), (*ink, 0))
    page.paste(rotated, (x, y))
    along = boxes[:, 0].copy()
    boxes[:, 0] = x + rotated.width / 2 + along * math.cos(radians)
    boxes[:, 1] = y + rotated.height / 2 - along * math.sin(radians)
    return page, boxes


def label_glyphs(cells: Cells, boxes: np.ndarray, width: int, height: int) -> None:
    """Class of the glyph at each patch's centre."""
    labels = np.zeros((height // PATCH, width // PATCH), np.int64)
    things = np.zeros_like(labels)
    y = (np.arange(labels.shape[0]) + 0.5)[:, None] * PATCH
    x = (np.arange(labels.shape[1]) + 0.5)[None, :] * PATCH
    for index, (cx, cy, half_w, half_h, glyph) in enumerate(boxes):
        # A glyph narrower than a patch may miss every patch's centre: widen it to reach the nearest.
        inside = (np.abs(x - cx) <= max(half_w, PATCH / 2)) & (np.abs(y - cy) <= max(half_h, PATCH / 2))
        labels[inside] = int(glyph)
        things[inside] = index + 1
    cells.glyph[0], cells.thing[0] = patches_of_cells(labels), patches_of_cells(things)


def label_spelling(cells: Cells, boxes: np.ndarray) -> None:
    """Which glyph of the word a patch shows, and what follows it."""
    following = np.append(boxes[1:, 4], 0).astype(np.int64)
    at = cells.thing > 0
    index = cells.thing[at] - 1
    cells.spelling[at] = np.stack((np.minimum(index, MOST_COUNTED), following[index]), -1)


def contrasting_ink(rng: np.random.Generator, paper: np.ndarray) -> tuple[int, int, int]:
    light = paper.mean() > 128
    for _ in range(6):
        ink = (
            rng.integers(0, 256, 3)
            if rng.random() < 0.5
            else np.full(3, rng.integers(0, 70) if light else rng.integers(190, 256))
        )
        if abs(float(ink.mean()) - float(paper.mean())) > 80:
            return tuple(int(c) for c in ink)
    return (15, 15, 15) if light else (240, 240, 240)


def printed(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    questions: int = 2,
    string: str | None = None,
    words: tuple[str, ...] = WORDS,
    shares: tuple[float, float] = (0.4, 0.3),
    photos: tuple[str, ...] = draw.TRAINING_PHOTOS,
) -> Sample:
    """One picture with one printed number or word."""
    canvas = np.array(draw.background(rng, width, height, photos), np.float32)
    if rng.random() < 0.6:  # a sign or label to write on
        inset = rng.integers(0, max(1, min(width, height) // 10), 2)
        canvas[inset[1] : height - inset[1], inset[0] : width - inset[0]] = draw.muted_colour(rng)
    elif canvas.std() > 30:  # too busy to read on: fade it
        canvas = canvas * 0.35 + draw.muted_colour(rng) * 0.65
    ink = contrasting_ink(rng, canvas)
    drawn, most = None, max(1, min(8, width // 20))
    fixed = string
    while drawn is None:
        string = fixed or random_string(rng, most, words, shares)
        drawn = text_layer(rng, string, width, height, ink)
        most = max(1, most - 1)
        if fixed and drawn is None:
            raise ValueError(f"{string!r} doesn't fit {width}x{height}")
    page, boxes = drawn
    draw.paste(canvas, np.asarray(page), 0, 0)
    cells = Cells.empty(1, height, width)
    label_glyphs(cells, boxes, width, height)
    label_spelling(cells, boxes)
    taken = draw.Camera(rng).take(canvas)
    options = phrases.READ_NUMBER if string.isdigit() else phrases.READ_WORD
    turns = [Turn("reading", pick(rng, options), string, [(0, i) for i in range(len(string))])]
    if questions > 1 and rng.random() < 0.25:
        turns.append(Turn("count", pick(rng, phrases.COUNT_ALL), "0"))
    if questions > 1 and rng.random() < 0.25:
        from .scenes import missing_name

        name = missing_name(rng, [])
        turns.append(Turn("refusal", pick(rng, phrases.WHERE).format(name=name), phrases.absent(name)))
    return Sample([Block(taken[None], cells)], turns)
