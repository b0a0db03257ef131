"""What a generator returns: picture and video blocks, questions about them, and dense labels of every cell.

A cell is one visual token: 2x2 patches, 28x28 pixels. Its four patches are numbered top left, top right,
bottom left, bottom right, as the vision tower merges them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

PATCH, CELL = 14, 28
IGNORE = -100
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # class i + 1; class 0 is none
MOST_COUNTED = 7  # larger ranks and counts are labelled so
# What Cells.beside holds of a cell's object: the next object to its left and to its right (colours and shapes
# as in Cells.colour and Cells.shape), how many objects are left of it, and how many are of its shape, of its
# colour, and there at all.
BESIDE = (
    *("left_colour", "left_shape", "right_colour", "right_shape"),
    *("rank", "same_shape", "same_colour", "total"),
)


@dataclass
class Cells:
    """Labels of one block; t, h, w count temporal patches and cells."""

    colour: np.ndarray  # [t, h, w, 4] of patches: 0 none, 1 + index into COLOUR_NAMES, IGNORE where unclear
    shape: np.ndarray  # [t, h, w, 4]: 0 none, 1 + index into SHAPES
    glyph: np.ndarray  # [t, h, w, 4]: 0 none, 1 + index into GLYPHS
    box: (
        np.ndarray
    )  # [t, h, w, 4] edges (x1, y1, x2, y2) of the cell's object in cells from the cell's centre, or nan
    motion: np.ndarray  # [t, h, w]: 0 still or none, 1 + index into DIRECTIONS
    thing: np.ndarray  # [t, h, w, 4]: 0 none, 1 + index of the object or glyph there
    beside: np.ndarray  # [t, h, w, len(BESIDE)], IGNORE where there is no object
    spelling: np.ndarray  # [t, h, w, 4, 2]: a glyph's index in its word and the next glyph's class, or IGNORE

    @classmethod
    def empty(cls, t: int, height: int, width: int) -> Cells:
        """No object, no glyph, nothing moves; sides in pixels."""
        h, w = height // CELL, width // CELL
        return cls(
            np.zeros((t, h, w, 4), np.int64),
            np.zeros((t, h, w, 4), np.int64),
            np.zeros((t, h, w, 4), np.int64),
            np.full((t, h, w, 4), np.nan, np.float32),
            np.zeros((t, h, w), np.int64),
            np.zeros((t, h, w, 4), np.int64),
            np.full((t, h, w, len(BESIDE)), IGNORE, np.int64),
            np.full((t, h, w, 4, 2), IGNORE, np.int64),
        )


@dataclass
class Block:
    """One picture ([1, H, W, 3]) or one video ([frames, H, W, 3], even), uint8, sides multiples of 28."""

    frames: np.ndarray
    cells: Cells | None = None

    @property
    def is_video(self) -> bool:
        return len(self.frames) > 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal patches, rows and columns of cells."""
        f, h, w, _ = self.frames.shape
        return (f + 1) // 2, h // CELL, w // CELL


@dataclass
class Turn:
    """A question, its answer, and the objects or glyphs the answer speaks of, in order: (block, index).

    named: objects that the question names, as it writes them: (words, index in the only block).
    """

    task: str
    question: str
    answer: str
    things: list[tuple[int, int]] = field(default_factory=list)
    named: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Sample:
    blocks: list[Block]
    turns: list[Turn] = field(default_factory=list)


def pick(rng: np.random.Generator, options: tuple | list):
    return options[rng.integers(len(options))]


def patches_of_cells(labels: np.ndarray) -> np.ndarray:
    """[rows of patches, columns of patches] -> [h, w, 4]"""
    rows, columns = labels.shape
    return (
        labels.reshape(rows // 2, 2, columns // 2, 2)
        .transpose(0, 2, 1, 3)
        .reshape(rows // 2, columns // 2, 4)
    )
