"""Which frames of a video are taken and how large they become: the rules of the model's own utilities.

They are those of `qwen-vl-utils` (`smart_nframes`, `calculate_video_frame_range`, `fetch_video`), with the
limits that were published with Qwen2-VL. Versions differ: releases from 0.0.9 on raised the default total
from 24576 to 115200 visual tokens; older ones took no video_start and video_end for some decoders. One
difference here: a video of a single frame is accepted (its frame is repeated).
"""

from __future__ import annotations

import math

import numpy as np

from qwen2vl_rt.errors import VideoError
from qwen2vl_rt.processing.options import VisualOptions

DEFAULT_FPS = 2.0
MIN_FRAMES = 4
MAX_FRAMES = 768
#: Frames come in such groups: one temporal patch.
FRAME_FACTOR = 2
# Limits in visual tokens, each `factor` * `factor` pixels.
_MIN_FRAME_TOKENS = 128
_MAX_FRAME_TOKENS = 768
_TOTAL_TOKENS = 24576


def frame_range(total: int, fps: float, options: VisualOptions) -> tuple[int, int]:
    """First and last frame index between video_start and video_end.

    total: frames of the video; fps: its frames per second. Raises VideoError where nothing lies between.
    """
    if options.video_start is None and options.video_end is None:
        return 0, total - 1
    duration = total / fps
    start, end = 0, total - 1
    if options.video_start is not None:
        start = math.ceil(min(options.video_start, duration) * fps)
    if options.video_end is not None:
        end = min(math.floor(min(options.video_end, duration) * fps), total - 1)
    if start >= end:  # the utilities' rule: two frames at least
        after = "its begin" if options.video_start is None else f"video_start={options.video_start:g}"
        before = "its end" if options.video_end is None else f"video_end={options.video_end:g}"
        found = f"one frame (at {start / fps:.2f} seconds) lies" if start == end else "no frames lie"
        raise VideoError(
            f"{found} between {after} and {before}, two are needed: the video has {duration:.2f} seconds at "
            f"its average frame rate, {total} frames {1 / fps:.3g} seconds apart"
        )
    return start, end


def frame_count(total: int, fps: float, options: VisualOptions) -> int:
    """How many of `total` frames (those in range) are taken: even, unless the video has one frame only.

    fps: the video's frames per second. Raises VideoError where nframes asks for more than there are.
    """
    if total == 1:
        return 1
    if options.nframes is not None:
        count = round(options.nframes / FRAME_FACTOR) * FRAME_FACTOR
    else:
        wanted_fps = DEFAULT_FPS if options.fps is None else options.fps
        least = math.ceil((options.min_frames or MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
        most = math.floor((options.max_frames or min(MAX_FRAMES, total)) / FRAME_FACTOR) * FRAME_FACTOR
        wanted = min(min(max(total / fps * wanted_fps, least), most), total)
        count = math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= total:
        asked = options.max_frames if options.nframes is None else options.nframes
        raise VideoError(
            f"cannot take {asked} frames of {total}, two by two: nframes and max_frames must allow 2 to "
            f"{total // FRAME_FACTOR * FRAME_FACTOR}"
        )
    return count


def frame_indices(start: int, end: int, count: int) -> list[int]:
    """`count` frame indices spread over start..end: torch.linspace(start, end, count).round()."""
    if count == 1:
        return [start]
    # torch computes in float32, from both ends towards the middle, each sum rounded once.
    step = np.float64(np.float32(end - start) / np.float32(count - 1))
    index = np.arange(count)
    ramp = np.where(index < count // 2, start + step * index, end - step * (count - 1 - index))
    return np.rint(ramp.astype(np.float32)).astype(int).tolist()


def frame_limits(
    frames: int, factor: int, options: VisualOptions, least: int, most: int
) -> tuple[float, float]:
    """(min_pixels, max_pixels) of each frame of a video from which `frames` frames are taken.

    factor: 28, the side of a visual token in pixels. least, most: what the bundle allows a picture; defaults
    stay inside.
    """
    token = factor * factor
    low = options.min_pixels
    if low is None:
        low = min(max(_MIN_FRAME_TOKENS * token, least), most)
    total = options.total_pixels or _TOTAL_TOKENS * token
    high = max(min(_MAX_FRAME_TOKENS * token, total / frames * FRAME_FACTOR), int(low * 1.05))
    if options.max_pixels is not None:
        high = min(options.max_pixels, high)
    elif options.min_pixels is None:
        high = min(high, most)
    return min(low, high), high
