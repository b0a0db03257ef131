"""Write the pictures and conversations that quantized exports are calibrated on, from seeds of their own:

    python -m models.training.make_calibration export/qwen2vl_export/quantize/calibration_set

Scenes, words, digits, videos and sets of pictures as the tiny checkpoint is taught them (seeds apart from
training's and the evaluation's), four free photographs, and the texts of calibration_texts.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from . import draw
from .batches import draw_sample
from .make_eval import fitting
from .sample import Sample

SEED = 550_000_000
SAMPLES = {"scene": 28, "printed": 14, "handwritten": 10, "video": 5, "several": 6}
QUESTIONS = 3  # of a sample, at most
LARGEST = {"scene": 224, "printed": 168}  # pixels squared of a drawn picture
LARGEST_OTHERS = 112
PHOTO_SIDE = 336
TEXTS = Path(__file__).with_name("calibration_texts.jsonl")


def make(folder: Path) -> None:
    rng = np.random.default_rng(SEED)
    lines = [
        line for kind, wanted in SAMPLES.items() for _ in range(wanted) for line in _drawn(rng, kind, folder)
    ]
    lines += [_written(json.loads(line), folder) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({"messages": line}, ensure_ascii=False) + "\n" for line in lines)
    (folder / "conversations.jsonl").write_text(text, encoding="utf-8")


def _drawn(rng: np.random.Generator, kind: str, folder: Path) -> list[list[dict]]:
    """One sample: a conversation for each of some of its questions, with the answer."""
    layout = fitting(rng, kind, LARGEST.get(kind, LARGEST_OTHERS))
    # Of the photographs only those free of rights: the pictures are shipped.
    sample: Sample = draw_sample(rng, kind, layout, 1.0, draw.HELD_OUT_PHOTOS)
    content: list[dict] = []
    for block in sample.blocks:
        names = [_save(Image.fromarray(frame), folder) for frame in block.frames]
        if block.is_video:
            content.append({"type": "video", "video": names, "min_pixels": 56 * 56})
        else:
            content.append({"type": "image", "image": names[0]})
    turns = [sample.turns[i] for i in rng.permutation(len(sample.turns))[:QUESTIONS]]
    return [
        [
            {"role": "user", "content": [*content, {"type": "text", "text": turn.question}]},
            {"role": "assistant", "content": turn.answer},
        ]
        for turn in turns
    ]


def _written(item: dict, folder: Path) -> list[dict]:
    """A conversation of the text file; `photo` names the picture that goes before its first question."""
    messages = item["messages"]
    if photo := item.get("photo"):
        image = draw.photo(photo).copy()
        image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        picture = {"type": "image", "image": _save(image, folder)}
        first = [picture, {"type": "text", "text": messages[0]["content"]}]
        messages = [{"role": "user", "content": first}, *messages[1:]]
    return messages


def _save(image: Image.Image, folder: Path) -> str:
    """Saves a picture as JPEG; returns its name in the set."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    name = f"pictures/{len(list(pictures.iterdir())) + 1:03d}.jpg"
    image.save(folder / name, quality=92, optimize=True)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    make(folder)


if __name__ == "__main__":
    main()
