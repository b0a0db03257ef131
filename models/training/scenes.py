"""Tabletop scenes: placing objects, rendering them, labelling cells, and asking about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import draw, phrases
from .phrases import COLOUR_NAMES, COLOURS, SHAPES
from .sample import (
    CELL,
    IGNORE,
    MOST_COUNTED,
    PATCH,
    Block,
    Cells,
    Sample,
    Turn,
    patches_of_cells,
    pick,
)


@dataclass(frozen=True)
class Asked:
    """Which questions a scene gets: the share of plain descriptions among those of everything at once, and
    weights of the short ones; a kind that stands twice may be asked twice."""

    describe: float
    kinds: tuple[tuple[str, float], ...]


# The evaluation set's.
ASKED = Asked(
    0.4,
    (
        *(("where", 3.0), ("where", 3.0), ("where", 3.0), ("missing", 2.5), ("count", 2.5), ("colour", 2.0)),
        *(
            ("exists", 1.5),
            ("beside", 3.0),
            ("relation", 2.0),
            ("end", 1.2),
            ("shape", 1.2),
            ("no_text", 0.3),
        ),
    ),
)
# Training's: more of what is learnt last.
TAUGHT = Asked(
    0.8,
    (
        *(("where", 3.0), ("where", 3.0), ("missing", 2.0), ("count", 5.0), ("colour", 1.2), ("exists", 1.2)),
        *(
            ("beside", 3.5),
            ("beside", 3.5),
            ("relation", 2.0),
            ("end", 0.8),
            ("shape", 0.8),
            ("no_text", 0.3),
        ),
    ),
)


@dataclass(eq=False)
class Thing:
    """One object of a scene; x, y is the top left corner of its cutout in pixels."""

    colour: str
    shape: str
    cutout: np.ndarray  # uint8 [h, w, 4]
    x: int
    y: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        h, w = self.cutout.shape[:2]
        return self.x, self.y, self.x + w, self.y + h

    @property
    def centre_x(self) -> float:
        return self.x + self.cutout.shape[1] / 2


def all_names() -> list[tuple[str, str]]:
    return [(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES]


def make_thing(rng: np.random.Generator, colour: str, shape: str, size: float) -> Thing:
    tone = (np.array(COLOURS[colour], np.float32) * rng.uniform(0.9, 1.06) + rng.normal(0, 6, 3)).clip(0, 255)
    stretch = rng.uniform(0.8, 1.25) if shape != "ball" else rng.uniform(0.97, 1.03)
    width, height = max(12, int(size * stretch)), max(12, int(size / stretch))
    return Thing(colour, shape, draw.draw_object(rng, shape, tone, width, height), 0, 0)


def visible(thing: Thing, canvas: np.ndarray) -> bool:
    """Does the object's colour stand out from what it is put on?"""
    x1, y1, x2, y2 = thing.box
    around = canvas[y1:y2:3, x1:x2:3].reshape(-1, 3).mean(0)
    return float(np.abs(around - np.array(COLOURS[thing.colour])).max()) > 62


def place(
    rng: np.random.Generator,
    canvas: np.ndarray,
    wanted: list[tuple[str, str]],
    *,
    sizes=(0.2, 0.5),
    apart: float = 0.05,
) -> list[Thing]:
    """Put the wanted (colour, shape) things on canvas without much overlap; drops what doesn't fit.

    Centres differ by at least `apart` of the width, so that left and right are plain.
    """
    height, width = canvas.shape[:2]
    side = min((width * height) ** 0.5, 1.7 * min(width, height))
    crowd = max(1.0, (len(wanted) / 2.5) ** 0.5)
    things: list[Thing] = []
    for colour, shape in wanted:
        for attempt in range(8):
            size = max(15.0, side * rng.uniform(*sizes) / crowd * 0.9**attempt)
            thing = make_thing(rng, colour, shape, min(size, 0.92 * min(width, height)))
            h, w = thing.cutout.shape[:2]
            if w > width or h > height:
                continue
            thing.x, thing.y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            if all(
                abs(thing.centre_x - other.centre_x) >= apart * width and _overlap(thing, other) < 0.18
                for other in things
            ) and visible(thing, canvas):
                things.append(thing)
                break
    return things


def _overlap(a: Thing, b: Thing) -> float:
    """Shared area over the smaller box's area."""
    ax1, ay1, ax2, ay2 = a.box
    bx1, by1, bx2, by2 = b.box
    shared = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
    return shared / min((ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1))


def render(
    rng: np.random.Generator, canvas: np.ndarray, things: list[Thing], shadows: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of canvas with the things drawn in order, and the owner of each pixel (0 none, 1 + index)."""
    canvas = np.array(canvas, np.float32)
    owner = np.zeros(canvas.shape[:2], np.uint8)
    if shadows:
        for thing in things:
            draw.shadow(rng, canvas, thing.box)
    for index, thing in enumerate(things):
        mask = draw.paste(canvas, thing.cutout, thing.x, thing.y)
        x1, y1, x2, y2 = thing.box
        owner[y1:y2, x1:x2][mask] = index + 1
    return canvas, owner


def label_cells(
    cells: Cells,
    t: int,
    owner: np.ndarray,
    things: list[Thing],
    boxes: list[tuple],
    motions: list[int] | None = None,
    numbers: list[int] | None = None,
) -> None:
    """Fill temporal patch t of cells from the pixels' owners; boxes in pixels of owner's picture.

    numbers are the things' indices where they aren't simply 0, 1, ...
    """
    rows, columns = owner.shape[0] // PATCH, owner.shape[1] // PATCH
    cover = np.zeros((len(things) + 1, rows, columns), np.float32)  # share of each patch an object covers
    blocks = owner.reshape(rows, PATCH, columns, PATCH)
    for index in range(1, len(things) + 1):
        cover[index] = (blocks == index).mean((1, 3))
    best = cover[1:].argmax(0) + 1 if things else np.zeros((rows, columns), np.int64)
    most = cover.max(0)
    colours = np.array([0] + [1 + COLOUR_NAMES.index(thing.colour) for thing in things])
    shapes = np.array([0] + [1 + SHAPES.index(thing.shape) for thing in things])
    unclear, empty = (most > 0.05) & (most < 0.25), most <= 0.05
    for labels, classes in ((cells.colour, colours), (cells.shape, shapes)):
        patch = classes[best]
        patch[empty] = 0
        patch[unclear] = IGNORE
        labels[t] = patches_of_cells(patch)
    h, w = rows // 2, columns // 2
    cell_cover = cover.reshape(len(cover), h, 2, w, 2).mean((2, 4))
    cell_best, cell_most = cell_cover.argmax(0), cell_cover.max(0)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        r, c = np.nonzero((cell_best == index + 1) & (cell_most > 0.08))
        edges = np.array((x1, y1, x2, y2), np.float32) / CELL
        cells.box[t, r, c] = edges - np.stack((c + 0.5, r + 0.5, c + 0.5, r + 0.5), 1)
        cells.thing[t, r, c, :] = 1 + (numbers[index] if numbers else index)
        cells.beside[t, r, c] = beside(things, boxes, index)
        if motions is not None:
            cells.motion[t, r, c] = motions[index]


def beside(things: list[Thing], boxes: list[tuple], index: int) -> list[int]:
    """The entries of sample.BESIDE of one thing."""
    order = sorted(range(len(things)), key=lambda i: boxes[i][0] + boxes[i][2])
    rank = order.index(index)

    def neighbour(at: int) -> tuple[int, int]:
        if not 0 <= at < len(order):
            return 0, 0
        thing = things[order[at]]
        return 1 + COLOUR_NAMES.index(thing.colour), 1 + SHAPES.index(thing.shape)

    alike = [sum(thing.shape == things[index].shape for thing in things)]
    alike += [sum(thing.colour == things[index].colour for thing in things), len(things)]
    numbers = [min(number, MOST_COUNTED) for number in (rank, *alike)]
    return [*neighbour(rank - 1), *neighbour(rank + 1), *numbers]


def normalised(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels -> the family's 0..999 of each side."""
    sides = (width, height, width, height)
    return tuple(min(999, max(0, int(edge / side * 1000))) for edge, side in zip(box, sides, strict=True))


def draw_wanted(rng: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """How many and which objects: mostly different ones, sometimes several of one colour or shape."""
    count = int(rng.integers(0 if rng.random() < 0.1 else 1, most + 1))
    names = all_names()
    kind = rng.random()
    if kind < 0.25:
        shape = pick(rng, SHAPES)
        names = [name for name in names if name[1] == shape] + names[:4]
    elif kind < 0.4:
        colour = pick(rng, COLOUR_NAMES)
        names = [name for name in names if name[0] == colour] * 2 + names[:6]
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    if count >= 2 and rng.random() < 0.15:
        chosen[1] = chosen[0]
    return chosen


def scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    most: int = 4,
    questions: int = 4,
    asked: Asked = ASKED,
    photos: tuple[str, ...] = draw.TRAINING_PHOTOS,
) -> Sample:
    """One picture of a table with up to `most` objects, and questions about it."""
    drawn_w, drawn_h = width, height
    if rng.random() < 0.25:  # another size than a multiple of 28: the processor will resize it
        drawn_w, drawn_h = (int(side * rng.uniform(0.9, 1.6)) for side in (width, height))
    canvas = draw.background(rng, drawn_w, drawn_h, photos)
    room = max(1, min(most, width * height // (CELL * CELL * 3)))
    things = place(rng, canvas, draw_wanted(rng, room))
    canvas, owner = render(rng, canvas, things, shadows=rng.random() < 0.4)
    taken = draw.Camera(rng).take(canvas)
    boxes = [thing.box for thing in things]
    if (drawn_w, drawn_h) != (width, height):
        taken = np.asarray(Image.fromarray(taken).resize((width, height), Image.Resampling.BICUBIC))
        owner = np.asarray(Image.fromarray(owner).resize((width, height), Image.Resampling.NEAREST))
        scale = (width / drawn_w, height / drawn_h) * 2
        boxes = [tuple(edge * s for edge, s in zip(box, scale, strict=True)) for box in boxes]
    cells = Cells.empty(1, height, width)
    label_cells(cells, 0, owner, things, boxes)
    turns = scene_turns(rng, things, [normalised(box, width, height) for box in boxes], questions, asked)
    return Sample([Block(taken[None], cells)], turns)


def left_to_right(things: list[Thing]) -> list[int]:
    return sorted(range(len(things)), key=lambda i: things[i].centre_x)


def missing_name(rng: np.random.Generator, things: list[Thing]) -> str:
    """A thing that isn't there; usually one that shares its colour or shape with one that is."""
    there = {(thing.colour, thing.shape) for thing in things}
    names = [name for name in all_names() if name not in there]
    if things and rng.random() < 0.7:
        near = pick(rng, things)
        names = [name for name in names if (name[0] == near.colour) != (name[1] == near.shape)] or names
    return " ".join(pick(rng, names))


def dense_turn(
    rng: np.random.Generator, things: list[Thing], boxes: list[tuple], describe: float = ASKED.describe
) -> Turn:
    """Everything at once, left to right: by name (the share `describe`), or by name and box."""
    order = left_to_right(things)
    if rng.random() < describe:
        return Turn(
            "describe",
            pick(rng, phrases.DESCRIBE),
            phrases.enumerate_names([things[i].name for i in order]),
            [(0, i) for i in order],
        )
    answer = "".join(phrases.grounded(things[i].name, boxes[i]) for i in order)
    return Turn("detect", pick(rng, phrases.DETECT), answer or phrases.NOTHING, [(0, i) for i in order])


def scene_turns(
    rng: np.random.Generator, things: list[Thing], boxes: list[tuple], questions: int, asked: Asked = ASKED
) -> list[Turn]:
    """A dense turn and `questions` short ones of different kinds."""
    turns = [dense_turn(rng, things, boxes, asked.describe)]
    kinds, weights = [kind for kind, _ in asked.kinds], np.array([weight for _, weight in asked.kinds])
    for kind in rng.choice(kinds, min(questions, 8), replace=False, p=weights / weights.sum()):
        turn = short_turn(rng, str(kind), things, boxes)
        if turn is not None and all(turn.question != other.question for other in turns):
            turns.append(turn)
    return turns


def short_turn(rng: np.random.Generator, kind: str, things: list[Thing], boxes: list[tuple]) -> Turn | None:
    """A question of one kind, or None where this scene has no fair one."""
    names = [thing.name for thing in things]
    unique = [i for i, name in enumerate(names) if names.count(name) == 1]
    order = left_to_right(things)
    if kind == "missing":
        name = missing_name(rng, things)
        return Turn("refusal", pick(rng, phrases.WHERE).format(name=name), phrases.absent(name))
    if kind == "no_text":
        return Turn("refusal", pick(rng, phrases.READ_WORD), phrases.NO_TEXT)
    if kind == "exists":
        there = bool(names) and rng.random() < 0.5
        name = pick(rng, names) if there else missing_name(rng, things)
        question = pick(rng, phrases.EXISTS).format(name=name)
        if not there:
            return Turn("exists", question, phrases.NO)
        at = names.index(name)
        return Turn("exists", question, phrases.YES, [(0, at)], [(name, at)])
    if kind == "count":
        return count_turn(rng, things)
    if kind == "colour":
        shape = pick(rng, things).shape if things and rng.random() < 0.8 else pick(rng, SHAPES)
        found = [thing for thing in things if thing.shape == shape]
        if len(found) > 1:
            return None
        question = pick(rng, phrases.COLOUR_OF).format(shape=shape)
        if not found:
            return Turn("refusal", question, phrases.absent(shape))
        at = things.index(found[0])
        return Turn("colour", question, found[0].colour, [(0, at)], [(shape, at)])
    if kind == "shape":
        colour = pick(rng, things).colour if things and rng.random() < 0.8 else pick(rng, COLOUR_NAMES)
        found = [thing for thing in things if thing.colour == colour]
        if len(found) > 1:
            return None
        question = pick(rng, phrases.SHAPE_OF).format(colour=colour)
        if not found:
            return Turn("refusal", question, phrases.absent(f"{colour} object"))
        at = things.index(found[0])
        return Turn("what", question, phrases.with_article(found[0].shape), [(0, at)], [(colour, at)])
    if not things:
        return None
    if kind == "end":
        leftmost = rng.random() < 0.5
        question = pick(rng, phrases.LEFTMOST if leftmost else phrases.RIGHTMOST)
        i = order[0 if leftmost else -1]
        return Turn("relation", question, phrases.with_article(names[i]), [(0, i)])
    if not unique:
        return None
    i = pick(rng, unique)
    if kind == "where":
        name = names[i]
        if rng.random() < 0.2 and sum(thing.shape == things[i].shape for thing in things) == 1:
            name = things[i].shape
        answer = phrases.grounded(f"the {name}", boxes[i])
        return Turn("grounding", pick(rng, phrases.WHERE).format(name=name), answer, [(0, i)], [(name, i)])
    if kind == "beside":
        left = rng.random() < 0.5
        at = order.index(i) + (-1 if left else 1)
        question = pick(rng, phrases.LEFT_OF if left else phrases.RIGHT_OF).format(name=names[i])
        if not 0 <= at < len(order):
            return Turn("relation", question, phrases.NOTHING, named=[(names[i], i)])
        answer = phrases.with_article(names[order[at]])
        return Turn("relation", question, answer, [(0, order[at])], [(names[i], i)])
    if kind == "relation" and len(unique) > 1:
        j = pick(rng, [k for k in unique if k != i])
        left = rng.random() < 0.5
        question = pick(rng, phrases.IS_LEFT_OF if left else phrases.IS_RIGHT_OF).format(
            a=names[i], b=names[j]
        )
        holds = (things[i].centre_x < things[j].centre_x) == left
        answer = phrases.YES if holds else phrases.NO
        return Turn("relation", question, answer, named=[(names[i], i), (names[j], j)])
    return None


def count_turn(rng: np.random.Generator, things: list[Thing]) -> Turn:
    kind = rng.random()
    if kind < 0.4:
        question, counted = pick(rng, phrases.COUNT_ALL), list(range(len(things)))
    elif kind < 0.7:
        shape = pick(rng, things).shape if things and rng.random() < 0.8 else pick(rng, SHAPES)
        question = pick(rng, phrases.COUNT_SHAPE).format(shape=shape)
        counted = [i for i, thing in enumerate(things) if thing.shape == shape]
    else:
        colour = pick(rng, things).colour if things and rng.random() < 0.8 else pick(rng, COLOUR_NAMES)
        question = pick(rng, phrases.COUNT_COLOUR).format(colour=colour)
        counted = [i for i, thing in enumerate(things) if thing.colour == colour]
    return Turn("count", question, str(len(counted)), [(0, i) for i in counted])
