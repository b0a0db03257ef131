"""Reading a video's sampled frames one by one, never the video as a whole.

A file is read twice: once without decoding, to learn how many frames there are and when each is shown, and
once to decode, from the keyframe before each wanted frame where that skips something. At any time one decoded
frame is held, besides the few that the decoder keeps.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qwen2vl_rt.errors import InputError, PictureError, VideoError
from qwen2vl_rt.processing.network import FetchError, fetch
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pictures import MAX_PICTURE_PIXELS, decode_data_url, load_picture, path_of
from qwen2vl_rt.processing.sampling import DEFAULT_FPS, frame_count, frame_indices, frame_range

#: Most bytes of a video read from a network address (into a temporary file).
MAX_VIDEO_BYTES = 4 << 30
#: Seconds for reading a video from a network address.
NETWORK_TIMEOUT = 600.0
# Going to a keyframe costs about as much as decoding some frames: it must skip more than these.
_LEAST_SKIP = 8
# FFmpeg's AVFMT_TS_DISCONT, a flag of formats such as MPEG transport streams.
_TIMES_MAY_JUMP = 0x0200


class IndexMismatchError(Exception):
    """The decoder did not yield the frames that the file's packets promised; read again with exact=True."""


@dataclass
class Clip:
    """The frames that are taken of one video.

    Attributes:
        count: how many frames `frames` yields.
        frames: uint8 [height, width, 3] RGB arrays, any strides, to be read once and one at a time.
        sample_fps: frames taken per second of video.
        times: seconds of each frame from the video's begin.
    """

    count: int
    frames: Generator[np.ndarray, None, None]
    sample_fps: float
    times: list[float]


@contextlib.contextmanager
def open_video(
    source: Any, options: VisualOptions, name: str = "video", exact: bool = False
) -> Iterator[Clip]:
    """Opens a video.

    source: a path; the bytes of a video file; an open binary file that can seek; an http://, https://, file://
    or data: address; or the frames themselves, all of which are taken: a list of pictures (anything that
    load_picture takes) or a numpy array, uint8 [frames, height, width, 3].

    options: which frames of a file to take. exact: count frames by decoding them all instead of by packets.
    Raises VideoError. Reading `frames` raises VideoError for damaged data, IndexMismatchError unless exact.
    """
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    if isinstance(source, (list, tuple)):
        yield _listed(source, name)
        return
    with _opened(source, name) as (file, label):
        with _as_video_errors(label):
            clip = _FileReader(file, label, options, exact).clip()
        with contextlib.closing(clip.frames):
            yield clip


@contextlib.contextmanager
def _as_video_errors(label: str) -> Iterator[None]:
    try:
        yield
    except (InputError, IndexMismatchError):
        raise
    except Exception as error:  # damaged data lets FFmpeg and PyAV fail in many ways
        raise VideoError(f"{label}: cannot be read: {type(error).__name__}: {error}") from None


def _listed(pictures: Any, name: str) -> Clip:
    if not len(pictures):
        raise VideoError(f"{name}: a list of no frames")

    def frames() -> Generator[np.ndarray, None, None]:
        first = None
        for index, picture in enumerate(pictures):
            try:
                pixels = load_picture(picture, f"{name}[{index}]").pixels
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
def _opened(source: Any, name: str) -> Iterator[tuple[Any, str]]:
    """The source as something that PyAV opens ("file:" and a path, or a file), and its name in messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), name
    elif isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            try:
                fetch(source, file, MAX_VIDEO_BYTES, NETWORK_TIMEOUT)
            except FetchError as error:
                raise VideoError(f"{name}: {source:.80} cannot be read: {error}") from None
            file.seek(0)
            yield file, f"{name} ({source:.80})"
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
        yield source, name
    else:
        raise VideoError(
            f"{name}: a {type(source).__module__}.{type(source).__qualname__} is no video; give a path, "
            "bytes, an http(s)://, file:// or data: address, a list of pictures, or a uint8 numpy array "
            "[frames, height, width, 3]"
        )


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


class _FileReader:
    """One video file: finds out what it holds, then decodes what is wanted."""

    def __init__(self, file: Any, label: str, options: VisualOptions, exact: bool):
        self._file, self._label, self._exact = file, label, exact
        self._scan()
        if exact:
            with self._container() as (container, stream):
                self._times = [frame.pts for frame in container.decode(stream)]
        if not self._times:
            raise VideoError(f"{label}: holds no frames")
        start, end = frame_range(len(self._times), self._fps, options)
        in_range = end - start + 1
        self._wanted = frame_indices(start, end, frame_count(in_range, self._fps, options))
        self._sample_fps = len(self._wanted) / in_range * self._fps

    def clip(self) -> Clip:
        if None in self._times:
            seconds = [index / self._fps for index in self._wanted]
        else:
            seconds = [float((self._times[i] - self._times[0]) * self._time_base) for i in self._wanted]
        return Clip(len(self._wanted), self._frames(), self._sample_fps, seconds)

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[Any, Any]]:
        import av  # heavy, and needed for video files only

        if not isinstance(self._file, str):
            self._file.seek(0)
        with av.open(self._file, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise VideoError(f"{self._label}: holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_PIXELS)}
            yield container, stream

    def _scan(self) -> None:
        """Frame times in order of display, the times of keyframes, and the frame rate, from packets alone."""
        times: list[int | None] = []
        keyframes: list[int] = []
        with self._container() as (container, stream):
            for packet in container.demux():
                if packet.is_corrupt:
                    raise VideoError(f"{self._label}: the file is cut off or damaged (byte {packet.pos})")
                if packet.stream.index != stream.index or packet.size == 0:
                    continue
                times.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keyframes.append(packet.pts)
            self._fps = float(stream.average_rate or stream.guessed_rate or 25)
            seeks_precisely = not int(container.format.flags) & _TIMES_MAY_JUMP
            self._time_base = stream.time_base or Fraction(1, 1000)
        known = [time for time in times if time is not None]
        # Without distinct times nothing can be found by time: the frames are counted as they come.
        self._seekable = len(set(known)) == len(times)
        self._times = sorted(known) if self._seekable else times
        # Keyframes to go to; in a transport stream, where a search by time is a guess, none.
        self._keyframes = sorted(keyframes) if seeks_precisely else []

    def _frames(self) -> Generator[np.ndarray, None, None]:
        with _as_video_errors(self._label), self._container() as (container, stream):
            find = self._sought if self._seekable and not self._exact else self._counted
            for frame in find(container, stream):
                yield _upright(frame, stream)

    def _counted(self, container: Any, stream: Any) -> Iterator[Any]:
        """The wanted frames, by counting from the first one."""
        position = 0
        for index, frame in enumerate(container.decode(stream)):
            while self._wanted[position] == index:
                yield frame
                position += 1
                if position == len(self._wanted):
                    return
        raise IndexMismatchError

    def _sought(self, container: Any, stream: Any) -> Iterator[Any]:
        """The wanted frames, by their times, decoding from the keyframe before it where that pays."""
        targets = [self._times[index] for index in self._wanted]
        position, shown = 0, -1  # the next target, and the index of the frame decoded last
        while position < len(targets):
            keyframe = self._keyframe_before(targets[position])
            if keyframe is not None and self._index(keyframe) > shown + _LEAST_SKIP:
                container.seek(keyframe, stream=stream, backward=True)
            else:
                keyframe = None
            for frame in container.decode(stream):
                shown = self._index(frame.pts)
                if keyframe is not None and frame.pts < keyframe:
                    continue  # shown before the keyframe, it may refer to frames that were skipped
                if frame.pts > targets[position]:
                    raise IndexMismatchError
                while targets[position] == frame.pts:
                    yield frame
                    position += 1
                    if position == len(targets):
                        return
                ahead = self._keyframe_before(targets[position])
                if ahead is not None and self._index(ahead) > shown + _LEAST_SKIP:
                    break
            else:
                raise IndexMismatchError

    def _keyframe_before(self, time: int) -> int | None:
        place = bisect.bisect_right(self._keyframes, time)
        return self._keyframes[place - 1] if place else None

    def _index(self, time: int | None) -> int:
        """The index of the frame shown at that time."""
        place = bisect.bisect_left(self._times, time) if time is not None else len(self._times)
        if place == len(self._times) or self._times[place] != time:
            raise IndexMismatchError
        return place


def _upright(frame: Any, stream: Any) -> np.ndarray:
    """RGB pixels of a decoded frame, turned as the file says it is to be shown."""
    pixels = frame.to_ndarray(format="rgb24")
    rotation = getattr(frame, "rotation", None)  # degrees, counterclockwise
    if rotation is None:  # older PyAV tells it of the stream
        rotation = (getattr(stream, "side_data", None) or {}).get("DISPLAYMATRIX", 0)
    quarter_turns = round(rotation / 90) % 4
    return np.rot90(pixels, quarter_turns) if quarter_turns else pixels
