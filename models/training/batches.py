"""From samples to batches: which tasks and sizes are drawn, and how prompts become token ids and positions.

All samples of a batch have the same layout (sizes of pictures), so nothing is padded in the vision tower.
The questions about one sample are branches: each sees the system prompt, the pictures and itself, exactly as
if it had been asked alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from . import phrases
from .digits import handwritten
from .draw import TRAINING_PHOTOS, resized
from .drills import drill
from .pictures import several
from .sample import CELL, Sample, Turn
from .scenes import TAUGHT, scene
from .text import COMMON_WORDS, printed
from .video import video

MOST_CELLS = 16  # a side of 448 pixels
RESIZED = 0.3  # share of samples whose pictures come in sizes that the processor has to change
KINDS = ("scene", "printed", "handwritten", "video", "several", "drill")

UNKNOWN = np.full(4, np.nan)
CELL_LABELS = ("colour", "shape", "glyph", "box", "motion", "beside", "spelling")

Layout = list[tuple[int, int, int]]  # frames, width, height of each block, in pixels


def draw_sample(
    rng: np.random.Generator,
    kind: str,
    layout: Layout,
    level: float,
    photos: tuple[str, ...] = TRAINING_PHOTOS,
) -> Sample:
    """One sample of a kind; level 0..1 is how far the curriculum has come.

    `photos` may stand behind what is drawn; drills take training's.
    """
    frames, width, height = layout[0]
    if kind == "scene":
        return scene(rng, width, height, most=3 + round(3 * level), questions=5, asked=TAUGHT, photos=photos)
    if kind == "printed":
        return printed(rng, width, height, words=COMMON_WORDS, shares=(0.3, 0.4), photos=photos)
    if kind == "handwritten":
        return handwritten(rng, width, height)
    if kind == "drill":
        return drill(rng, width, height)
    if kind == "video":
        return video(rng, frames, width, height, most=2 + round(level), photos=photos)
    return several(rng, [(w, h) for _, w, h in layout], most=2 + round(level), photos=photos)


def draw_layout(rng: np.random.Generator, kind: str, level: float) -> Layout:
    """Sizes of the pictures: 56 to 448 pixels a side, wide and tall too; small ones while level is low."""

    def side(least_area: float, most_area: float, stretch: float) -> tuple[int, int]:
        area, aspect = (
            np.exp(rng.uniform(np.log(least_area), np.log(most_area))),
            np.exp(rng.normal(0, stretch)),
        )
        sides = (
            np.clip(np.round((area * aspect) ** 0.5), 2, MOST_CELLS),
            np.clip(np.round((area / aspect) ** 0.5), 2, MOST_CELLS),
        )
        return CELL * int(sides[0]), CELL * int(sides[1])

    if kind == "scene":
        if rng.random() < 0.05 * level:
            return [(1, *side(150, 256, 0.2))]
        return [(1, *side(6 - 2 * level, 20 * 6**level, 0.15 + 0.25 * level))]
    if kind == "printed":
        width, height = side(6 - 2 * level, 16 * 4**level, 0.45)
        return [(1, max(width, height), min(width, height)) if rng.random() < 0.7 else (1, width, height)]
    if kind == "handwritten":
        return [(1, *side(4, 9 + 16 * level, 0.2))]
    if kind == "drill":
        return [(1, *side(12, 36, 0.2))]
    if kind == "video":
        return [(int(rng.choice((4, 6, 8))), *side(4, 12 + 13 * level, 0.3))]
    count = int(rng.integers(2, 5))
    if rng.random() < 0.6:
        return [(1, *side(4, 12 + 13 * level, 0.3))] * count
    return [(1, *side(4, 12 + 13 * level, 0.3)) for _ in range(count)]


def draw_kind(rng: np.random.Generator, level: float, mix: dict[str, float]) -> str:
    """Single pictures first; videos and several pictures join as the level rises. mix: factors on shares."""
    late = 0.04 + 0.2 * min(1.0, 3 * level)
    weights = np.array([0.56, 0.26, 0.08, late, late, 0.5])
    weights *= [mix.get(kind, 1.0) for kind in KINDS]
    return KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]


@dataclass
class Batch:
    """B samples of one layout; L is the longest sequence, A the number of answer tokens in all."""

    frames: list[torch.Tensor]  # of each block: uint8 [B, frames, height, width, 3]
    cells: list[
        list[torch.Tensor]
    ]  # of each block: its CELL_LABELS (see sample.Cells), each [B, t, h, w, ...]
    ids: torch.Tensor  # [B, L] int64
    positions: torch.Tensor  # [3, B, L] int64
    branch: torch.Tensor  # [B, L] int64: 0 the shared prefix, 1.. a question, -1 padding
    visual: torch.Tensor  # [V] int64: columns of L that hold visual tokens
    places: torch.Tensor  # [V, 3] int64: temporal patch, row and column of each visual token in its block
    answers: torch.Tensor  # [A, 3] int64: sample, column whose next token is predicted, that token
    answer_branch: torch.Tensor  # [A] int64: index into tasks
    answer_weight: torch.Tensor  # [A] float32: weight of each answer token's loss
    pointers: (
        torch.Tensor
    )  # [number of pointers, 2] int64: sample, column from which an object's cells are to be found
    pointed: torch.Tensor  # [number of pointers, V] bool: the cells that show it
    pointed_box: torch.Tensor  # [number of pointers, 4] float32: its edges in 0..1, nan for several or none
    pointer_named: torch.Tensor  # [number of pointers] bool: in the question that names it, not in an answer
    asks: torch.Tensor  # [number of branches, 2] int64: sample, column of the last token before the answer
    boxes: torch.Tensor  # [number of boxes, 2] int64: sample, column of <|box_start|>
    box_edges: torch.Tensor  # [number of boxes, 4] float32 in 0..1
    tasks: list[str]  # of each branch
    texts: list[tuple[str, str]]  # question and answer of each branch

    def to(self, device: torch.device) -> Batch:
        moved = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, torch.Tensor):
                value = value.to(device, non_blocking=True)
            elif item.name == "frames":
                value = [frames.to(device, non_blocking=True) for frames in value]
            elif item.name == "cells":
                value = [[labels.to(device, non_blocking=True) for labels in block] for block in value]
            moved[item.name] = value
        return Batch(**moved)


class Encoder:
    """Turns samples of one layout into a batch."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.special = {
            name: self.tokenizer.token_to_id(f"<|{name}|>")
            for name in (
                "vision_start",
                "vision_end",
                "image_pad",
                "video_pad",
                "box_start",
                "box_end",
                "object_ref_start",
                "im_end",
            )
        }
        self.opening = self.encode(f"<|im_start|>system\n{phrases.SYSTEM}<|im_end|>\n<|im_start|>user\n")
        self.articles = {
            self.tokenizer.token_to_id(token) for token in ("a", "an", "the", "Ġa", "Ġan", "Ġthe")
        }
        self.digits = {self.tokenizer.token_to_id(digit) for digit in "0123456789"}
        self.middle = self.encode("<|im_end|>\n<|im_start|>assistant\n")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self, sample: Sample) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
        """ids [P], positions [3, P], columns of visual tokens [V], their places [V, 3]"""
        ids, positions = list(self.opening), [np.tile(np.arange(len(self.opening)), (3, 1))]
        visual, places = [], []
        start = len(ids)

        def text(token: int) -> None:
            nonlocal start
            ids.append(token)
            positions.append(np.full((3, 1), start))
            start += 1

        for block in sample.blocks:
            text(self.special["vision_start"])
            place = np.stack(np.meshgrid(*(np.arange(n) for n in block.grid), indexing="ij"), -1).reshape(
                -1, 3
            )
            visual.append(len(ids) + np.arange(len(place)))
            places.append(place)
            ids.extend([self.special["video_pad" if block.is_video else "image_pad"]] * len(place))
            positions.append(place.T + start)
            start += max(block.grid)
            text(self.special["vision_end"])
        return ids, np.concatenate(positions, 1), np.concatenate(visual), np.concatenate(places)

    def anchors(
        self, first: int, answer: list[int], turn: Turn
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Columns at which the decoder should have an object in mind, and which one.

        That is where the answer begins (its first object, or all that are counted), and each later article,
        reference and box; for text, before each letter.
        """
        if turn.task in ("reading", "handwriting"):
            yield from ((first - 1 + i, [glyph]) for i, glyph in enumerate(turn.things))
            return
        if turn.things:
            yield first - 1, turn.things if turn.task == "count" else turn.things[:1]
        kinds = (self.articles, {self.special["object_ref_start"]}, {self.special["box_start"]})
        for tokens in kinds:
            columns = [first + i for i, token in enumerate(answer[:-1]) if token in tokens]
            if len(columns) == len(turn.things):
                yield from ((column, [thing]) for column, thing in zip(columns, turn.things, strict=True))

    def mentions(self, first: int, turn: Turn) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Columns of the last words of the objects that a question names, and which; it begins at `first`."""
        offsets = self.tokenizer.encode(turn.question, add_special_tokens=False).offsets
        for words, thing in turn.named:
            end = turn.question.index(words) + len(words)
            column = next(i for i, (_, stop) in enumerate(offsets) if stop >= end)
            yield first + column, [(0, thing)]

    def weights(self, answer: list[int]) -> list[float]:
        """Long answers weigh less a token, and so do a coordinate's low digits, which are mostly noise.

        The weight depends on the place in the number alone. If it depended on whether a digit or a comma is
        there, it would shift the odds between them.
        """
        weights, inside, place = [len(answer) ** -0.5] * len(answer), False, 0
        for i, token in enumerate(answer):
            if inside:
                weights[i] *= (2.0, 1.6, 0.7, 0.4)[place]
            inside = (inside or token == self.special["box_start"]) and token != self.special["box_end"]
            place = place + 1 if token in self.digits else 0
        return weights

    def batch(self, samples: list[Sample]) -> Batch:
        prefix, prefix_positions, visual, places = self.prefix(samples[0])
        start = int(prefix_positions.max()) + 1
        rows, answers, answer_branch, asks, boxes, edges, tasks, texts = [], [], [], [], [], [], [], []
        answer_weight, pointers, pointed, pointed_box, pointer_named = [], [], [], [], []
        for b, sample in enumerate(samples):
            ids, positions, branch = list(prefix), [prefix_positions], [0] * len(prefix)
            for number, turn in enumerate(sample.turns, 1):
                ask = self.encode(turn.question) + self.middle
                answer = self.encode(turn.answer + "<|im_end|>")
                first = len(ids) + len(ask)
                asks.append((b, first - 1))
                answers.extend((b, first - 1 + i, token) for i, token in enumerate(answer))
                answer_branch.extend([len(tasks)] * len(answer))
                boxes.extend(
                    (b, first + i) for i, token in enumerate(answer) if token == self.special["box_start"]
                )
                edges.extend(box_edges(turn.answer))
                answer_weight.extend(self.weights(answer))
                shown = [block.cells.thing.reshape(-1, 4) for block in sample.blocks]
                named = self.mentions(first - len(ask), turn)
                for column, wanted in chain(named, self.anchors(first, answer, turn)):
                    cells = np.concatenate(
                        [
                            np.isin(things, [1 + i for n, i in wanted if n == block]).any(1)
                            for block, things in enumerate(shown)
                        ]
                    )
                    if cells.any():
                        pointers.append((b, column))
                        pointer_named.append(column < first - 1)
                        pointed.append(cells)
                        pointed_box.append(edges_of(sample, cells) if len(wanted) == 1 else UNKNOWN)
                tasks.append(turn.task)
                texts.append((turn.question, turn.answer))
                length = len(ask) + len(answer) - 1
                ids.extend((ask + answer)[:length])
                positions.append(np.tile(start + np.arange(length), (3, 1)))
                branch.extend([number] * length)
            rows.append((ids, np.concatenate(positions, 1), branch))
        longest = max(len(ids) for ids, _, _ in rows)
        all_ids = np.zeros((len(rows), longest), np.int64)
        all_positions = np.zeros((3, len(rows), longest), np.int64)
        all_branches = np.full((len(rows), longest), -1, np.int64)
        for b, (ids, positions, branch) in enumerate(rows):
            all_ids[b, : len(ids)], all_positions[:, b, : len(ids)], all_branches[b, : len(ids)] = (
                ids,
                positions,
                branch,
            )
        blocks = range(len(samples[0].blocks))
        return Batch(
            frames=[
                torch.from_numpy(np.stack([sample.blocks[i].frames for sample in samples])) for i in blocks
            ],
            cells=[
                [
                    torch.from_numpy(np.stack([getattr(sample.blocks[i].cells, name) for sample in samples]))
                    for name in CELL_LABELS
                ]
                for i in blocks
            ],
            ids=torch.from_numpy(all_ids),
            positions=torch.from_numpy(all_positions),
            branch=torch.from_numpy(all_branches),
            visual=torch.from_numpy(visual),
            places=torch.from_numpy(places),
            answers=torch.tensor(answers),
            answer_branch=torch.tensor(answer_branch),
            answer_weight=torch.tensor(answer_weight, dtype=torch.float32),
            pointers=torch.tensor(pointers, dtype=torch.int64).reshape(-1, 2),
            pointed=torch.from_numpy(np.array(pointed, bool).reshape(-1, len(visual))),
            pointed_box=torch.from_numpy(np.array(pointed_box, np.float32).reshape(-1, 4)),
            pointer_named=torch.tensor(pointer_named, dtype=torch.bool),
            asks=torch.tensor(asks),
            boxes=torch.tensor(boxes, dtype=torch.int64).reshape(-1, 2),
            box_edges=torch.tensor(edges, dtype=torch.float32).reshape(-1, 4),
            tasks=tasks,
            texts=texts,
        )


def edges_of(sample: Sample, cells: np.ndarray) -> np.ndarray:
    """Edges in 0..1 of the object that cells (bool [V]) show, from the cells' labels; of single pictures."""
    if len(sample.blocks) > 1 or sample.blocks[0].is_video:
        return UNKNOWN
    _, rows, columns = sample.blocks[0].grid
    first = int(cells.argmax())
    row, column = divmod(first, columns)
    edges = sample.blocks[0].cells.box.reshape(-1, 4)[first] + np.tile((column + 0.5, row + 0.5), 2)
    return edges / (columns, rows, columns, rows)


def box_edges(answer: str) -> list[list[float]]:
    """The boxes of an answer, in 0..1."""
    found = re.findall(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", answer)
    return [[(int(edge) + 0.5) / 1000 for edge in box] for box in found]


def batch_size(kind: str, layout: Layout, budget: float) -> int:
    """Samples a batch, so that all batches cost about the same; budget in patches of the vision tower."""
    cells = sum((frames + 1) // 2 * width * height // CELL**2 for frames, width, height in layout)
    text = 0 if kind == "drill" else 1.4 * (cells + 120)
    return int(np.clip(budget / (4 * cells + text), 3, 64))


def stream(
    tokenizer_file: Path, seed: int, level_of: Callable[[int], float], budget: float, mix: dict[str, float]
) -> Iterator[Batch]:
    """Endless batches; level_of(samples drawn so far) is the curriculum's level."""
    encoder, rng, drawn = Encoder(tokenizer_file), np.random.default_rng(seed), 0
    while True:
        level = level_of(drawn)
        kind = draw_kind(rng, level, mix)
        layout = draw_layout(rng, kind, level)
        size = batch_size(kind, layout, budget)
        samples = [draw_sample(rng, kind, layout, level) for _ in range(size)]
        for sample in samples:
            if kind != "drill" and rng.random() < RESIZED:
                sample.blocks = [replace(block, frames=resized(rng, block.frames)) for block in sample.blocks]
        yield encoder.batch(samples)
        drawn += size
