"""Several pictures in one prompt: which differs, in which one something is."""

from __future__ import annotations

import numpy as np

from . import draw, phrases, scenes
from .sample import Block, Cells, Sample, Turn, pick


def several(
    rng: np.random.Generator,
    sizes: list[tuple[int, int]],
    *,
    most: int = 3,
    questions: int = 4,
    photos: tuple[str, ...] = draw.TRAINING_PHOTOS,
) -> Sample:
    """One picture a size (width, height); half of the time all but one show the same."""
    if len({size for size in sizes}) == 1 and len(sizes) > 1 and rng.random() < 0.5:
        return spot_the_difference(rng, sizes, most=most, questions=questions, photos=photos)
    return unrelated(rng, sizes, most=most, questions=questions, photos=photos)


def picture(rng: np.random.Generator, canvas: np.ndarray, things: list[scenes.Thing]) -> Block:
    height, width = canvas.shape[:2]
    drawn, owner = scenes.render(rng, canvas, things, shadows=False)
    cells = Cells.empty(1, height, width)
    scenes.label_cells(cells, 0, owner, things, [thing.box for thing in things])
    return Block(draw.Camera(rng).take(drawn)[None], cells)


def unrelated(
    rng: np.random.Generator,
    sizes: list[tuple[int, int]],
    *,
    most: int,
    questions: int,
    photos: tuple[str, ...],
) -> Sample:
    """Different tables; asked is in which picture something is."""
    blocks, shown = [], []
    for width, height in sizes:
        canvas = draw.background(rng, width, height, photos)
        things = scenes.place(rng, canvas, scenes.draw_wanted(rng, int(rng.integers(1, most + 1))))
        blocks.append(picture(rng, canvas, things))
        shown.append(things)
    return Sample(blocks, which_turns(rng, shown, questions))


def which_turns(rng: np.random.Generator, shown: list[list[scenes.Thing]], questions: int) -> list[Turn]:
    nth = int(rng.integers(len(shown)))
    order = scenes.left_to_right(shown[nth])
    turns = [
        Turn(
            "pictures",
            pick(rng, phrases.DESCRIBE_NTH).format(n=nth + 1),
            phrases.enumerate_names([shown[nth][i].name for i in order]),
            [(nth, i) for i in order],
        )
    ]
    names = {thing.name for things in shown for thing in things} | {
        thing.shape for things in shown for thing in things
    }
    once = [name for name in sorted(names) if sum(_shows(things, name) for things in shown) == 1]
    for name in [once[i] for i in rng.permutation(len(once))[: max(1, questions - 2)]]:
        n = next(i for i, things in enumerate(shown) if _shows(things, name)) + 1
        turns.append(
            Turn(
                "pictures",
                pick(rng, phrases.WHICH_PICTURE).format(name=name),
                phrases.NTH.format(n=n),
                [(n - 1, i) for i, thing in enumerate(shown[n - 1]) if name in (thing.name, thing.shape)],
            )
        )
    if rng.random() < 0.6:
        gone = scenes.missing_name(rng, [thing for things in shown for thing in things])
        turns.append(
            Turn("refusal", pick(rng, phrases.WHICH_PICTURE).format(name=gone), phrases.absent(gone))
        )
    if len(shown) > 1 and rng.random() < 0.25:
        turns.append(Turn("pictures", pick(rng, phrases.ALL_SAME), phrases.NO))
    return turns


def _shows(things: list[scenes.Thing], name: str) -> bool:
    return any(name in (thing.name, thing.shape) for thing in things)


def spot_the_difference(
    rng: np.random.Generator,
    sizes: list[tuple[int, int]],
    *,
    most: int,
    questions: int,
    photos: tuple[str, ...],
) -> Sample:
    """The same table photographed several times; in one picture (or in none) a thing is another one."""
    width, height = sizes[0]
    canvas = draw.background(rng, width, height, photos)
    things: list[scenes.Thing] = []
    while not things:
        things = scenes.place(
            rng, canvas, scenes.draw_wanted(rng, int(rng.integers(1, most + 1))), sizes=(0.25, 0.55)
        )
    changed, odd = things, None
    if rng.random() < 0.75:
        changed = exchange_one(rng, canvas, things)
        odd = int(rng.integers(len(sizes))) if changed is not things else None
    shown = [changed if i == odd else things for i in range(len(sizes))]
    other = next((i for i, (old, new) in enumerate(zip(things, changed, strict=True)) if old is not new), 0)
    blocks = [picture(rng, canvas, list(each)) for each in shown]
    same = Turn("pictures", pick(rng, phrases.ALL_SAME), phrases.YES if odd is None else phrases.NO)
    turns = [same]
    if len(sizes) > 2:
        answer = phrases.NONE if odd is None else phrases.NTH.format(n=odd + 1)
        about = [] if odd is None else [(odd, other)]
        turns.append(Turn("pictures", pick(rng, phrases.WHICH_DIFFERS), answer, about))
    return Sample(blocks, which_turns(rng, shown, 3)[: max(1, questions - 2)] + turns)


def exchange_one(
    rng: np.random.Generator, canvas: np.ndarray, things: list[scenes.Thing]
) -> list[scenes.Thing]:
    """The same things, one of them in another colour or shape at the same place."""
    i = int(rng.integers(len(things)))
    old = things[i]
    for _ in range(6):
        colour, shape = scenes.missing_name(rng, [old]).split()
        new = scenes.make_thing(rng, colour, shape, (old.cutout.shape[0] * old.cutout.shape[1]) ** 0.5)
        h, w = new.cutout.shape[:2]
        height, width = canvas.shape[:2]
        if w <= width and h <= height:
            new.x, new.y = min(old.x, width - w), min(old.y, height - h)
            if scenes.visible(new, canvas):
                return [*things[:i], new, *things[i + 1 :]]
    return things
