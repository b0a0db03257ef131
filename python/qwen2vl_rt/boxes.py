"""Boxes in an answer: from the model's notation to pixels of the picture, and drawn onto it.

The model writes `<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`, with
whole numbers from 0 to 999 that count thousandths of the picture's width and height.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.pictures import load_picture

#: The model's coordinates run from 0 to this; a picture's side is COORDINATES + 1 of them.
COORDINATES = 999

_TAG = r"<\|(?:object_ref|box)_(?:start|end)\|>"
_NUMBER = r"\s*(\d{1,9})\s*"
_TOKEN = re.compile(
    rf"<\|object_ref_start\|>(?P<label>(?:(?!{_TAG}).)*)<\|object_ref_end\|>"
    rf"|<\|box_start\|>\s*\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)\s*<\|box_end\|>"
    r"|\b(?P<kind>Picture|Video) (?P<number>\d{1,6})\b",
    re.DOTALL,
)
# What may stand between a label and its box, or between two boxes of one label.
_JOINT = re.compile(r"[\s,;]*")

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6", "#808000")


@dataclass(frozen=True)
class Box:
    """A box in a picture or in a video's frames.

    Attributes:
        label: what the answer calls the object, None where it gives no name.
        x1, y1: left and top edge, pixels of the original picture (after its EXIF orientation is applied).
        x2, y2: right and bottom edge; x1 <= x2 and y1 <= y2.
        normalized: (x1, y1, x2, y2) as the model counts, 0 to 999.
        picture: index of the picture or video among the prompt's, in order of appearance.
    """

    label: str | None
    x1: float
    y1: float
    x2: float
    y2: float
    normalized: tuple[int, int, int, int]
    picture: int


def parse_boxes(text: str, sizes: Sequence[tuple[int, int]], kinds: Sequence[str] | None = None) -> list[Box]:
    """The boxes of an answer, in its order.

    text: the answer with its special tokens.
    sizes: (width, height) in pixels of each picture and video of the prompt, as the user gave them (a
        video's: its frames'). kinds: "image" or "video" for each; all pictures where it is left out.

    With several pictures a box belongs to the one that the answer named last before it ("Picture 2", "Video
    1", counted as in a prompt with vision ids), else to the prompt's last. A label holds for all boxes that
    follow it directly. Coordinates over 999 are clipped, swapped corners are ordered, and what does not
    parse is left out. Without pictures there are no boxes.
    """
    if not sizes:
        return []
    kinds = ["image"] * len(sizes) if kinds is None else list(kinds)
    numbered = {
        word: [index for index, kind in enumerate(kinds) if kind == wanted]
        for word, wanted in (("Picture", "image"), ("Video", "video"))
    }
    picture = len(sizes) - 1
    label, joint = None, 0  # the label in force, and where its last box or the label itself ends
    boxes = []
    for match in _TOKEN.finditer(text):
        if match["kind"]:
            named = numbered[match["kind"]]
            if 1 <= int(match["number"]) <= len(named):
                picture = named[int(match["number"]) - 1]
        elif match["label"] is not None:
            label, joint = match["label"].strip(), match.end()
        else:
            if not _JOINT.fullmatch(text, joint, match.start()):
                label = None
            joint = match.end()
            boxes.append(_box(label, [int(value) for value in match.groups()[1:5]], sizes[picture], picture))
    return boxes


def _box(label: str | None, corners: list[int], size: tuple[int, int], picture: int) -> Box:
    ax, ay, bx, by = (min(value, COORDINATES) for value in corners)
    left, right = sorted((ax, bx))
    top, bottom = sorted((ay, by))
    horizontal, vertical = size[0] / (COORDINATES + 1), size[1] / (COORDINATES + 1)
    return Box(
        label=label or None,
        x1=left * horizontal,
        y1=top * vertical,
        x2=right * horizontal,
        y2=bottom * vertical,
        normalized=(left, top, right, bottom),
        picture=picture,
    )


def draw_boxes(image: Any, boxes: Iterable[Box], font: Any = None) -> Image.Image:
    """A copy of the picture (RGB) with the boxes and their labels drawn.

    image: the picture, anything that load_picture takes. boxes: those to draw; their `picture` is not looked
    at. font: an ImageFont for the labels; the default one has Latin letters only. Boxes of one label share a
    colour.

    Raises:
        PictureError: the picture cannot be read.
        InputError: something that is no Box.
    """
    canvas = Image.fromarray(load_picture(image).pixels)
    draw = ImageDraw.Draw(canvas)
    shorter = min(canvas.size)
    line = max(2, round(shorter / 200))
    font = font or _default_font(max(12, round(shorter / 32)))
    colours: dict[str | None, str] = {}
    for box in boxes:
        if not isinstance(box, Box):
            raise InputError(f"draw_boxes takes Box objects, not {type(box).__name__}")
        colour = colours.setdefault(box.label, _COLOURS[len(colours) % len(_COLOURS)])
        draw.rectangle((box.x1, box.y1, box.x2, box.y2), outline=colour, width=line)
        if box.label:
            _draw_label(draw, box, colour, font, canvas.size)
    return canvas


def _draw_label(draw: ImageDraw.ImageDraw, box: Box, colour: str, font: Any, size: tuple[int, int]) -> None:
    """The label on a plate above the box, or inside its top where there is no room above."""
    label = box.label if len(box.label) <= 60 else box.label[:59] + "…"
    label = " ".join(label.split())
    try:
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    except UnicodeEncodeError:  # Pillow's bitmap font, where it was built without FreeType
        label = label.encode("ascii", "replace").decode()
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = max(0.0, min(box.x1, size[0] - width))
    y = box.y1 - height if box.y1 >= height else box.y1
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), label, fill="white", font=font)


def _default_font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow 10.0 has one size only
        return ImageFont.load_default()
