"""Write the fixed evaluation set from held-out seeds: python -m models.training.make_eval models/tiny/eval

Seeds, words, handwritten digits and photographs are none of those trained on. A third of the pictures have
sides that are no multiple of 28, so the processor has to resize them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from . import draw, phrases, scenes
from .batches import Layout, draw_layout
from .digits import handwriting, handwritten
from .pictures import several
from .sample import Sample, Turn, pick
from .scenes import scene
from .text import HELD_OUT_WORDS, printed
from .video import video

SEED = 770_000_000
PHOTO_SIDE = 196

# Questions of each task; drawn samples are used until all are there.
WANTED = {
    "describe": 40,
    "what": 25,
    "colour": 40,
    "count": 50,
    "relation": 50,
    "exists": 35,
    "grounding": 100,
    "refusal": 60,
    "reading": 80,
    "handwriting": 80,
    "video": 80,
    "pictures": 80,
}


class Writer:
    """Saves pictures and collects questions about them."""

    def __init__(self, folder: Path, wanted: dict[str, int]) -> None:
        self.folder, self.wanted = folder, wanted
        (folder / "pictures").mkdir(parents=True)
        self.lines: list[dict] = []
        self.asked: Counter[str] = Counter()
        self.pictures = 0

    def picture(self, pixels: np.ndarray, size: tuple[int, int] | None = None) -> str:
        """Saves uint8 [h, w, 3], resized to size where given; returns its name in the set."""
        self.pictures += 1
        name = f"pictures/{self.pictures:04d}.png"
        image = Image.fromarray(pixels)
        if size is not None:
            image = image.resize(size, Image.Resampling.BICUBIC)
        image.save(self.folder / name, optimize=True)
        return name

    def question(self, content: list[dict], turn: Turn, task: str | None = None) -> None:
        task = task or turn.task
        self.asked[task] += 1
        message = {"role": "user", "content": [*content, {"type": "text", "text": turn.question}]}
        number = f"{task}-{self.asked[task]:03d}"
        self.lines.append({"id": number, "task": task, "messages": [message], "answer": turn.answer})

    def sample(self, rng: np.random.Generator, sample: Sample, most: int) -> None:
        """Up to `most` of the sample's questions whose tasks still want some."""
        turns = [turn for turn in sample.turns if self.asked[turn.task] < self.wanted.get(turn.task, 0)]
        turns = [turns[i] for i in sorted(rng.permutation(len(turns))[:most])]
        if not turns:
            return
        resize = rng.random() < 1 / 3
        content = []
        for block in sample.blocks:
            _, height, width, _ = block.frames.shape
            size = (width - int(rng.integers(14)), height - int(rng.integers(14))) if resize else None
            names = [self.picture(frame, size) for frame in block.frames]
            if block.is_video:
                # The model's utilities enlarge frames to 128 visual tokens; this model learnt small ones.
                content.append({"type": "video", "video": names, "min_pixels": 56 * 56})
            else:
                content.append({"type": "image", "image": names[0]})
        for turn in turns:
            if self.asked[turn.task] < self.wanted[turn.task]:
                self.question(content, turn)

    def write(self) -> None:
        order = {task: i for i, task in enumerate([*WANTED, "photographs"])}
        self.lines.sort(key=lambda line: order[line["task"]])
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)
        (self.folder / "questions.jsonl").write_text(text, encoding="utf-8")


def small(layout: Layout, most: int) -> bool:
    return all(width * height <= most * most for _, width, height in layout)


def fitting(rng: np.random.Generator, kind: str, most: int) -> Layout:
    """A layout of the full curriculum with at most `most` squared pixels a picture: the set is small."""
    while not small(layout := draw_layout(rng, kind, 1.0), most):
        pass
    return layout


def photographs(rng: np.random.Generator, writer: Writer) -> None:
    """Real photographs hold none of the taught things: what is asked for has to be refused."""
    for name in draw.HELD_OUT_PHOTOS:
        photo = draw.photo(name).copy()
        photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        content = [{"type": "image", "image": writer.picture(np.asarray(photo))}]
        for _ in range(3):
            thing = scenes.missing_name(rng, [])
            if name == "coffee.png":  # it does show a cup
                thing = f"{thing.split()[0]} {pick(rng, ('block', 'ball'))}"
            where = pick(rng, phrases.WHERE).format(name=thing)
            writer.question(content, Turn("refusal", where, phrases.absent(thing)), "photographs")
            exists = pick(rng, phrases.EXISTS).format(name=thing)
            writer.question(content, Turn("exists", exists, phrases.NO), "photographs")


def make(folder: Path, seed: int = SEED, scale: int = 1) -> None:
    """Draws the set; `scale` times as many questions a task (as far as held-out digits go round)."""
    digits = handwriting(held_out=True)[1]
    wanted = {task: scale * number for task, number in WANTED.items()}
    wanted["handwriting"] = min(wanted["handwriting"], len(digits))
    writer = Writer(folder, wanted)

    def wants(*tasks: str) -> bool:
        return any(writer.asked[task] < wanted[task] for task in tasks)

    def generator(section: str) -> np.random.Generator:
        """One a section: a change of one generator leaves the other sections as they are."""
        return np.random.default_rng([seed, *section.encode()])

    rng = generator("scene")
    while wants("describe", "what", "colour", "count", "relation", "exists", "grounding", "refusal"):
        big = rng.random() < 0.08
        _, width, height = fitting(rng, "scene", 448 if big else 224)[0]
        writer.sample(
            rng, scene(rng, width, height, most=6, questions=8, photos=draw.HELD_OUT_BACKGROUNDS), 6
        )
    rng = generator("reading")
    while wants("reading"):
        _, width, height = fitting(rng, "printed", 168)[0]
        word = printed(rng, width, height, words=HELD_OUT_WORDS, photos=draw.HELD_OUT_PHOTOS)
        writer.sample(rng, word, 1)
    rng = generator("handwriting")
    order = iter(rng.permutation(len(digits)))
    while wants("handwriting"):
        _, width, height = fitting(rng, "handwritten", 112)[0]
        writer.sample(rng, handwritten(rng, width, height, held_out=True, index=int(next(order))), 1)
    rng = generator("video")
    while wants("video"):
        frames, width, height = fitting(rng, "video", 112)[0]
        writer.sample(rng, video(rng, frames, width, height, photos=draw.HELD_OUT_BACKGROUNDS), 3)
    rng = generator("pictures")
    while wants("pictures"):
        layout = fitting(rng, "several", 112)
        sizes = [(width, height) for _, width, height in layout]
        writer.sample(rng, several(rng, sizes, photos=draw.HELD_OUT_BACKGROUNDS), 3)
    photographs(generator("photographs"), writer)
    writer.write()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=SEED, help="of another set (default: the shipped set's)")
    parser.add_argument("--scale", type=int, default=1, help="times as many questions")
    options = parser.parse_args()
    if options.folder.exists():
        shutil.rmtree(options.folder)
    make(options.folder, options.seed, options.scale)


if __name__ == "__main__":
    main()
