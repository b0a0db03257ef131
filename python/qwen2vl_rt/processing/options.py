"""Options of one picture or video: how large it may become, and which frames of a video are taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from qwen2vl_rt.errors import InputError

_INTEGERS = (
    "min_pixels",
    "max_pixels",
    "resized_height",
    "resized_width",
    "nframes",
    "min_frames",
    "max_frames",
)
_MOST_PIXELS = 1 << 40


@dataclass(frozen=True)
class VisualOptions:
    """Options of a picture or video; None means the default. Names and meanings are the model's own
    utilities'.

    The same object can carry options of pictures and of videos: each takes what concerns it.

    Attributes:
        min_pixels: a smaller picture (or video frame) is enlarged to at least this many pixels.
        max_pixels: a larger one is shrunk to at most this many. 28 * 28 pixels become one visual token.
        resized_height: with resized_width, the size to resize to, in pixels, rounded to multiples of 28.
        resized_width: see resized_height.
        fps: frames taken per second of a video (default 2). Excludes nframes.
        nframes: how many frames to take, rounded to an even count. Excludes fps.
        min_frames: fewest frames that fps may lead to (default 4).
        max_frames: most frames that fps may lead to (default 768).
        video_start: seconds from the video's start, at its average frame rate, at which sampling starts.
        video_end: seconds at which it ends.
        total_pixels: pixels of all of a video's frames together, two frames counted as one (default 24576 *
        28 * 28).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    total_pixels: int | None = None

    def __post_init__(self):
        for name in FIELDS:
            value = getattr(self, name)
            if value is None:
                continue
            # NumPy's scalars are such numbers, too.
            if isinstance(value, bool) or not isinstance(value, Real) or value != value:  # nan
                raise InputError(f"{name} must be a number, not {value!r:.80}")
            least = 0 if name in ("video_start", "video_end") else 1 if name != "fps" else 1e-6
            if not least <= value <= _MOST_PIXELS:
                raise InputError(f"{name} is {value!r}; it must lie between {least} and {_MOST_PIXELS}")
            if name in _INTEGERS and value != int(value):
                raise InputError(f"{name} must be a whole number, not {value!r}")
            object.__setattr__(self, name, int(value) if name in _INTEGERS else float(value))
        if (self.resized_height is None) != (self.resized_width is None):
            raise InputError("resized_height and resized_width go together: give both or neither")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise InputError(f"min_pixels {self.min_pixels} is greater than max_pixels {self.max_pixels}")
        if self.fps is not None and self.nframes is not None:
            raise InputError("fps and nframes exclude each other: give one")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> VisualOptions:
        """Options from a dict; an unknown name is an InputError."""
        unknown = [name for name in values if name not in FIELDS]
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r:.80}; the options are {', '.join(FIELDS)}")
        return cls(**values)

    def over(self, defaults: VisualOptions) -> VisualOptions:
        """These options, with what they leave open taken from `defaults`.

        A size, a pair of pixel limits and a frame rate are each one choice: giving max_pixels here puts a
        resized_height of the defaults out of force, and nframes a default fps.
        """
        own = {name for name in FIELDS if getattr(self, name) is not None}
        merged = {name: getattr(self, name) for name in own}
        displaced: set[str] = set()
        if own & {"min_pixels", "max_pixels"}:
            displaced |= {"resized_height", "resized_width"}
        if own & {"fps", "nframes"}:
            displaced |= {"fps", "nframes"}
        for name in FIELDS:
            if name not in own and name not in displaced and getattr(defaults, name) is not None:
                merged[name] = getattr(defaults, name)
        # One limit given here wins over the other limit's default.
        if merged.get("min_pixels", 0) > merged.get("max_pixels", _MOST_PIXELS):
            merged["min_pixels" if "max_pixels" in own else "max_pixels"] = merged[
                "max_pixels" if "max_pixels" in own else "min_pixels"
            ]
        return VisualOptions(**merged)


FIELDS = tuple(field.name for field in dataclasses.fields(VisualOptions))
PICTURE_FIELDS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
