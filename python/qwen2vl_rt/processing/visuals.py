"""One picture or video, loaded and brought to the vision tower's input."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen2vl_rt._core import CancelToken
from qwen2vl_rt.calls import raise_if_cancelled
from qwen2vl_rt.errors import InputError, PictureError, PromptTooLongError, VideoError
from qwen2vl_rt.processing.device_frames import (
    DeviceFrames,
    DevicePatches,
    adopt_device_frame,
    is_device_frame,
    prepare_device_frame,
)
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.patches import PatchWriter
from qwen2vl_rt.processing.pictures import load_picture
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.sampling import frame_limits
from qwen2vl_rt.processing.video_file import IndexMismatchError
from qwen2vl_rt.processing.videos import open_video


@dataclass(frozen=True, eq=False)
class Visual:
    """A prepared picture or video.

    Attributes:
        kind: "image" or "video".
        grid_thw: temporal patches, rows and columns of patches.
        patches: float32 [t, grid_h * grid_w, patch_values], in merge order; of a frame in a GPU's memory they
            are there, too.
        width, height: of the original picture or of the video's frames, in pixels (what boxes are scaled to).
        digest: 32 bytes that identify kind and content; equal inputs have equal digests.
        sample_fps: a video's frames per second after sampling, None for a picture.
        frame_times: seconds of each sampled frame of a video, empty for a picture.
    """

    kind: str
    grid_thw: tuple[int, int, int]
    patches: np.ndarray | DevicePatches = field(repr=False)
    width: int
    height: int
    digest: bytes = field(repr=False)
    sample_fps: float | None = None
    frame_times: tuple[float, ...] = field(default=(), repr=False)

    def tokens(self, merge_size: int) -> int:
        """Visual tokens that it becomes."""
        t, h, w = self.grid_thw
        return t * h * w // merge_size**2


def prepare_picture(
    source: Any,
    options: VisualOptions,
    settings: PixelSettings,
    name: str = "picture",
    most_tokens: int | None = None,
    frames: DeviceFrames | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Visual, float]:
    """Loads, resizes and cuts up a picture; also gives the seconds that loading took.

    frames prepares pictures on a device: those that are in its memory, and those that are brought there; on
    None the former are refused, the latter prepared on the host.
    Raises PictureError; PromptTooLongError before resizing what becomes more than most_tokens;
    CancelledError.
    """
    started = loaded = time.perf_counter()
    if is_device_frame(source):
        frame = adopt_device_frame(source, frames, name)
        grid, patches, digest = prepare_device_frame(frame, options, settings, frames, name, most_tokens)
        return Visual("image", grid, patches, frame.width, frame.height, digest), 0.0
    picture = load_picture(source, name, cancel=cancel)
    loaded = time.perf_counter()
    if frames is not None and (frame := frames.upload(picture.pixels)) is not None:
        # What the device can't resize (some hundred times smaller) is left to the host.
        with contextlib.suppress(PictureError):
            grid, patches, digest = prepare_device_frame(frame, options, settings, frames, name, most_tokens)
            visual = Visual("image", grid, patches, picture.width, picture.height, digest)
            return visual, loaded - started
    try:
        height, width = settings.resized(picture.height, picture.width, options)
        writer = PatchWriter(settings, 1, height, width, "image", most_tokens)
        writer.add(picture.pixels)
    except PromptTooLongError as error:
        raise PromptTooLongError(f"{name}: {error}") from None
    except InputError as error:
        raise PictureError(f"{name}: {error}") from None
    visual = Visual("image", writer.grid_thw, writer.patches, picture.width, picture.height, writer.digest())
    return visual, loaded - started


def prepare_video(
    source: Any,
    options: VisualOptions,
    settings: PixelSettings,
    name: str = "video",
    most_tokens: int | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Visual, float]:
    """Samples, resizes and cuts up a video, frame by frame; also gives the seconds that decoding took.

    Raises VideoError; PromptTooLongError before resizing what becomes more than most_tokens; CancelledError.
    """
    for exact in (False, True):
        try:
            return _prepare_video(source, options, settings, name, most_tokens, exact, cancel)
        except IndexMismatchError:
            continue
    raise VideoError(f"{name}: does not give the same frames when it is read again")


def _prepare_video(
    source: Any,
    options: VisualOptions,
    settings: PixelSettings,
    name: str,
    most_tokens: int | None,
    exact: bool,
    cancel: CancelToken | None,
) -> tuple[Visual, float]:
    started = time.perf_counter()
    resize_seconds = 0.0
    writer, size = None, (0, 0)
    with open_video(source, options, name, exact, cancel) as clip:
        for frame in clip.frames:
            raise_if_cancelled(cancel)
            decoded = time.perf_counter()
            try:
                if writer is None:
                    size = frame.shape[:2]
                    limits = frame_limits(
                        clip.count, settings.factor, options, settings.min_pixels, settings.max_pixels
                    )
                    height, width = settings.resized(
                        *size,
                        VisualOptions(
                            resized_height=options.resized_height, resized_width=options.resized_width
                        ),
                        limits,
                    )
                    writer = PatchWriter(settings, clip.count, height, width, "video", most_tokens)
                writer.add(frame)
            except PromptTooLongError as error:
                raise PromptTooLongError(f"{name}: {error}") from None
            except InputError as error:
                raise VideoError(f"{name}: {error}") from None
            resize_seconds += time.perf_counter() - decoded
    if writer is None or not writer.complete:
        raise IndexMismatchError
    visual = Visual(
        "video",
        writer.grid_thw,
        writer.patches,
        width=size[1],
        height=size[0],
        digest=writer.digest(),
        sample_fps=clip.sample_fps,
        frame_times=tuple(clip.times),
    )
    return visual, time.perf_counter() - started - resize_seconds
