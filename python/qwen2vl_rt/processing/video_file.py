"""Reading a video file's sampled frames one by one, never the video as a whole.

A file is read twice: once without decoding, to learn how many frames there are and when each is shown, and
once to decode, from the keyframe before each wanted frame where that skips something. At any time one decoded
frame is held, besides the few that the decoder keeps.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from qwen2vl_rt.errors import InputError, VideoError
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pictures import MAX_PICTURE_PIXELS
from qwen2vl_rt.processing.sampling import frame_count, frame_indices, frame_range

# Going to a keyframe costs about as much as decoding some frames: it must skip more than these.
_LEAST_SKIP = 8
# FFmpeg's AVFMT_TS_DISCONT, a flag of formats such as MPEG transport streams.
_TIMES_MAY_JUMP = 0x0200


class IndexMismatchError(Exception):
    """The decoder did not yield the frames that the file's packets promised; read again with exact=True."""


@contextlib.contextmanager
def _as_video_errors(label: str) -> Iterator[None]:
    try:
        yield
    except (InputError, IndexMismatchError):
        raise
    except Exception as error:  # damaged data lets FFmpeg and PyAV fail in many ways
        raise VideoError(f"{label}: cannot be read: {type(error).__name__}: {error}") from None


class VideoFile:
    """One video file: finds out what it holds, then decodes what is wanted.

    file: an address or an open binary file that PyAV can open. label: how messages call it.
    options: which frames to take. exact: count frames by decoding them all instead of by packets.

    Attributes:
        count: how many frames are taken.
        sample_fps: frames taken per second of video.
        times: seconds of each taken frame from the video's start.
    Raises VideoError.
    """

    def __init__(self, file: Any, label: str, options: VisualOptions, exact: bool = False):
        self._file, self._label, self._exact = file, label, exact
        with _as_video_errors(label):
            self._scan()
            if exact:
                with self._container() as (container, stream):
                    self._times = [frame.pts for frame in container.decode(stream)]
        if not self._times:
            raise VideoError(f"{label}: holds no frames")
        start, end = frame_range(len(self._times), self._fps, options)
        in_range = end - start + 1
        self.count = frame_count(in_range, self._fps, options)
        self.sample_fps = self.count / in_range * self._fps
        self._wanted = frame_indices(start, end, self.count)
        if None in self._times:
            self.times = [index / self._fps for index in self._wanted]
        else:
            self.times = [float((self._times[i] - self._times[0]) * self._time_base) for i in self._wanted]

    def frames(self) -> Generator[np.ndarray, None, None]:
        """The frames, uint8 [height, width, 3] RGB, any strides. Close the generator when it is left early.

        Raises VideoError for damaged data, IndexMismatchError unless exact.
        """
        with _as_video_errors(self._label), self._container() as (container, stream):
            find = self._sought if self._seekable and not self._exact else self._counted
            for frame in find(container, stream):
                yield _upright(frame, stream)

    @contextlib.contextmanager
    def _container(self) -> Iterator[tuple[Any, Any]]:
        import av  # heavy, and needed for video files only

        if not isinstance(self._file, str):
            self._file.seek(0)
        # Titles and the like are not used; cameras write them in encodings of their own.
        with av.open(
            self._file, options={"protocol_whitelist": "file"}, metadata_errors="ignore"
        ) as container:
            if not container.streams.video:
                raise VideoError(f"{self._label}: holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:  # decoding it would end the process
                raise VideoError(
                    f"{self._label}: PyAV {av.__version__} has no decoder for its video stream, or that is "
                    "cut off: convert the video, to H.264 for example"
                )
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
                    continue  # the search may land early; going to the keyframe again would not end
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
