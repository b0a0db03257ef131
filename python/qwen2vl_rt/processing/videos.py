"""A video from whatever the caller has, as frames that come one by one."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen2vl_rt._core import CancelToken
from qwen2vl_rt.errors import PictureError, VideoError
from qwen2vl_rt.processing.network import FetchError, fetch, without_login
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pictures import decode_data_url, file_of, load_picture, path_of
from qwen2vl_rt.processing.sampling import DEFAULT_FPS
from qwen2vl_rt.processing.source_locks import source_lock
from qwen2vl_rt.processing.video_file import VideoFile

#: Most bytes of a video read from a network address (into a temporary file).
MAX_VIDEO_BYTES = 4 << 30
#: Seconds for reading a video from a network address.
NETWORK_TIMEOUT = 600.0


@dataclass
class Clip:
    """The frames that are taken of one video.

    Attributes:
        count: how many frames `frames` yields.
        frames: uint8 [height, width, 3] RGB arrays, any strides, to be read once and one at a time.
        sample_fps: frames taken per second of video.
        times: seconds of each frame from the video's start.
    """

    count: int
    frames: Generator[np.ndarray, None, None]
    sample_fps: float
    times: list[float]


@contextlib.contextmanager
def open_video(
    source: Any,
    options: VisualOptions,
    name: str = "video",
    exact: bool = False,
    cancel: CancelToken | None = None,
) -> Iterator[Clip]:
    """Opens a video.

    source: a path; the bytes of a video file; an open binary file that can seek; an http://, https://, file://
    or data: address; or the frames themselves, all of which are taken: a list of pictures (anything that
    load_picture takes) or a numpy array, uint8 [frames, height, width, 3].

    options: which frames of a file to take. exact: count frames by decoding them all instead of by packets.
    cancel: ends a download.
    Raises VideoError; CancelledError. Reading `frames` raises VideoError for damaged data, IndexMismatchError
    unless exact.
    """
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    if isinstance(source, (list, tuple)):
        yield _listed(source, name, cancel)
        return
    with _opened(source, name, cancel) as (file, label):
        video = VideoFile(file, label, options, exact)
        with contextlib.closing(video.frames()) as frames:
            yield Clip(video.count, frames, video.sample_fps, video.times)


def _listed(pictures: Any, name: str, cancel: CancelToken | None) -> Clip:
    if not len(pictures):
        raise VideoError(f"{name}: a list of no frames")

    def frames() -> Generator[np.ndarray, None, None]:
        first = None
        for index, picture in enumerate(pictures):
            try:
                pixels = load_picture(picture, f"{name}[{index}]", cancel=cancel).pixels
            except PictureError as error:
                raise VideoError(str(error)) from None
            first = first or pixels.shape
            if pixels.shape != first:
                raise VideoError(
                    f"{name}[{index}] has {pixels.shape[1]} x {pixels.shape[0]} pixels, the first frame "
                    f"{first[1]} x {first[0]}: all frames of a video must have one size"
                )
            yield pixels

    times = [index / DEFAULT_FPS for index in range(len(pictures))]
    return Clip(len(pictures), frames(), DEFAULT_FPS, times)


@contextlib.contextmanager
def _opened(source: Any, name: str, cancel: CancelToken | None) -> Iterator[tuple[Any, str]]:
    """The source as something that PyAV opens ("file:" and a path, or a file), and its name in messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        try:
            file = file_of(source, name)
        except PictureError as error:
            raise VideoError(str(error)) from None
        yield file, name
    elif isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        shown = without_login(source)[:80]
        with _temporary_file(name) as file:
            try:
                fetch(source, file, MAX_VIDEO_BYTES, NETWORK_TIMEOUT, cancel)
            except FetchError as error:
                raise VideoError(f"{name}: {shown} cannot be read: {error}") from None
            file.seek(0)
            yield file, f"{name} ({shown})"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        try:
            data = decode_data_url(source, name)
        except PictureError as error:
            raise VideoError(str(error)) from None
        yield io.BytesIO(data), name
    elif isinstance(source, (str, os.PathLike)):
        path = _readable_path(source, name)
        # The prefix keeps FFmpeg from reading a protocol into the name.
        yield f"file:{path}", f"{name} ({path!s:.200})"
    elif hasattr(source, "read") and hasattr(source, "seek"):
        with source_lock(source):
            yield source, name
    else:
        raise VideoError(
            f"{name}: a {type(source).__module__}.{type(source).__qualname__} is no video; give a path, "
            "bytes, an http(s)://, file:// or data: address, a list of pictures, or a uint8 numpy array "
            "[frames, height, width, 3]"
        )


def _temporary_file(name: str) -> Any:
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise VideoError(
            f"{name}: no temporary file can be made for the download ({error}): set TMPDIR to a folder with "
            "room"
        ) from None


def _readable_path(source: Any, name: str) -> Path:
    try:
        path = path_of(source, name) if isinstance(source, str) else Path(source)
        with path.open("rb"):
            return path
    except PictureError as error:
        raise VideoError(str(error)) from None
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise VideoError(f"{name}: {source!s:.200}: {reason}") from None
