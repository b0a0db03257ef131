"""Short videos of a table: something moves, appears or disappears."""

from __future__ import annotations

import numpy as np

from . import draw, phrases, scenes
from .sample import Block, Cells, Sample, Turn, pick

STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def video(
    rng: np.random.Generator,
    frames: int,
    width: int,
    height: int,
    *,
    most: int = 3,
    questions: int = 3,
    photos: tuple[str, ...] = draw.TRAINING_PHOTOS,
) -> Sample:
    """An even number of frames and questions about what happens."""
    if rng.random() < 0.5:
        return moving(rng, frames, width, height, most=most, questions=questions, photos=photos)
    return appearing(rng, frames, width, height, most=most, questions=questions, photos=photos)


def distinct(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    names = scenes.all_names()
    return [names[i] for i in rng.permutation(len(names))[:count]]


def film(
    rng: np.random.Generator,
    canvas: np.ndarray,
    things: list[scenes.Thing],
    places: list[list[tuple[int, int] | None]],
    motions: list[int],
) -> Block:
    """Render every frame; places[f][i] is thing i's corner in frame f, or None while it isn't there."""
    height, width = canvas.shape[:2]
    camera, taken = draw.Camera(rng), []
    cells = Cells.empty(len(places) // 2, height, width)
    for f, corners in enumerate(places):
        there = [i for i, corner in enumerate(corners) if corner is not None]
        for i in there:
            things[i].x, things[i].y = corners[i]
        shown = [things[i] for i in there]
        picture, owner = scenes.render(rng, canvas, shown, shadows=False)
        taken.append(camera.take(picture))
        if f % 2:
            scenes.label_cells(
                cells,
                f // 2,
                owner,
                shown,
                [thing.box for thing in shown],
                [motions[i] for i in there],
                there,
            )
    return Block(np.stack(taken), cells)


def moving(
    rng: np.random.Generator,
    frames: int,
    width: int,
    height: int,
    *,
    most: int,
    questions: int,
    photos: tuple[str, ...],
) -> Sample:
    """At most one of the things moves, straight on and in one of four directions."""
    canvas = draw.background(rng, width, height, photos)
    things: list[scenes.Thing] = []
    while not things:
        things = scenes.place(rng, canvas, distinct(rng, int(rng.integers(1, most + 1))), sizes=(0.22, 0.42))
    still = rng.random() < 0.1
    direction = pick(rng, phrases.DIRECTIONS)
    dx, dy = STEPS[direction]
    mover = things[0]
    h, w = mover.cutout.shape[:2]
    free = (width - w) if dx else (height - h)
    travel = int(free * rng.uniform(0.5, 1.0)) if free > frames else 0
    still = still or travel < max(8, frames * 2)
    start = int(rng.integers(free - travel + 1)) if not still else 0
    places = []
    for f in range(frames):
        corner = (mover.x, mover.y)
        if not still:
            along = start + round(travel * f / (frames - 1))
            along = along if dx + dy > 0 else free - along
            corner = (along, mover.y) if dx else (mover.x, along)
        places.append([corner] + [(thing.x, thing.y) for thing in things[1:]])
    motions = [0 if still else 1 + phrases.DIRECTIONS.index(direction)] + [0] * (len(things) - 1)
    # Drawn last, the mover passes in front of the others.
    things, motions = things[::-1], motions[::-1]
    places = [corners[::-1] for corners in places]
    block = film(rng, canvas, things, places, motions)
    return Sample([block], moving_turns(rng, things, None if still else mover, direction, questions))


def moving_turns(
    rng: np.random.Generator,
    things: list[scenes.Thing],
    mover: scenes.Thing | None,
    direction: str,
    questions: int,
) -> list[Turn]:
    happens = f"the {mover.name} moves {direction}" if mover else phrases.NOTHING
    about = [(0, things.index(mover))] if mover else []
    turns = [Turn("video", pick(rng, phrases.DESCRIBE_VIDEO), happens, about)]
    if mover:
        turns.append(Turn("video", pick(rng, phrases.DIRECTION).format(name=mover.name), direction, about))
    turns.append(
        Turn("video", pick(rng, phrases.WHAT_MOVES), f"the {mover.name}" if mover else phrases.NOTHING, about)
    )
    gone = scenes.missing_name(rng, things)
    turns.append(Turn("refusal", pick(rng, phrases.DIRECTION).format(name=gone), phrases.absent(gone)))
    turns.append(Turn("video", pick(rng, phrases.WHAT_APPEARS + phrases.WHAT_VANISHES), phrases.NOTHING))
    return turns[:1] + [turns[i] for i in sorted(1 + rng.permutation(len(turns) - 1)[:questions])]


def appearing(
    rng: np.random.Generator,
    frames: int,
    width: int,
    height: int,
    *,
    most: int,
    questions: int,
    photos: tuple[str, ...],
) -> Sample:
    """Things appear one after the other, or one of them disappears."""
    canvas = draw.background(rng, width, height, photos)
    things: list[scenes.Thing] = []
    while not things:
        things = scenes.place(rng, canvas, distinct(rng, int(rng.integers(1, most + 1))), sizes=(0.22, 0.42))
    pairs = frames // 2
    # (first frame there, first frame gone again) of each thing
    spans = [(0, frames) for _ in things]
    events: list[tuple[int, int, str]] = []  # frame, thing, what happens
    changing = min(len(things), pairs if pairs < 3 else pairs - 1, int(rng.integers(1, most + 1)))
    vanish = rng.random() < 0.4
    if vanish:
        changing = 1
    moments = np.sort(1 + rng.permutation(frames - 1)[:changing])
    if changing > 1:  # distinct pairs of frames, so that the order is plain
        moments = np.sort(1 + rng.permutation(pairs)[:changing]) * 2 - 1 if pairs >= changing else moments
    for i, moment in enumerate(moments):
        moment = int(moment)
        spans[i] = (0, moment) if vanish else (moment, frames)
        events.append((moment, i, "disappears" if vanish else "appears"))
    places = [
        [
            (thing.x, thing.y) if first <= f < gone else None
            for thing, (first, gone) in zip(things, spans, strict=True)
        ]
        for f in range(frames)
    ]
    block = film(rng, canvas, things, places, [0] * len(things))
    return Sample([block], appearing_turns(rng, things, events, questions))


def appearing_turns(
    rng: np.random.Generator, things: list[scenes.Thing], events: list[tuple[int, int, str]], questions: int
) -> list[Turn]:
    about = [(0, i) for _, i, _ in events]
    come = [f"the {things[i].name}" for _, i, what in events if what == "appears"]
    gone = [f"the {things[i].name}" for _, i, what in events if what == "disappears"]
    happens = ", then ".join(f"the {things[i].name} {what}" for _, i, what in events)
    turns = [Turn("video", pick(rng, phrases.DESCRIBE_VIDEO), happens, about)]
    if not come:
        turns.append(Turn("video", pick(rng, phrases.WHAT_APPEARS), phrases.NOTHING))
        turns.append(Turn("video", pick(rng, phrases.WHAT_VANISHES), gone[0], about))
    else:
        if len(come) == 1:
            turns.append(Turn("video", pick(rng, phrases.WHAT_APPEARS), come[0], about))
        else:
            turns.append(Turn("video", pick(rng, phrases.ORDER), ", then ".join(come), about))
            turns.append(Turn("video", pick(rng, phrases.APPEARS_FIRST), come[0], about[:1]))
            turns.append(Turn("video", pick(rng, phrases.APPEARS_LAST), come[-1], about[-1:]))
        turns.append(Turn("video", pick(rng, phrases.WHAT_VANISHES), phrases.NOTHING))
    turns.append(Turn("video", pick(rng, phrases.WHAT_MOVES), phrases.NOTHING))
    return turns[:1] + [turns[i] for i in sorted(1 + rng.permutation(len(turns) - 1)[:questions])]
