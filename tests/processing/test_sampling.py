"""Which frames are taken and how large they become, against the model's utilities' rules written out here."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwen2vl_rt.errors import VideoError
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.sampling import frame_count, frame_indices, frame_limits, frame_range


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 30_000), st.integers(1, 768))
def test_indices_are_those_of_linspace(start, length, count):
    assume(count <= length + 1)
    expected = torch.linspace(start, start + length, count).round().long().tolist()
    assert frame_indices(start, start + length, count) == expected


def utility_count(total, video_fps, fps=2.0, least=4, most=768):
    wanted = total / video_fps * fps
    least, most = math.ceil(least / 2) * 2, math.floor(min(most, total) / 2) * 2
    return math.floor(min(min(max(wanted, least), most), total) / 2) * 2


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 100_000), st.floats(1, 120), st.one_of(st.none(), st.floats(0.1, 30)))
def test_count_by_rate(total, video_fps, fps):
    got = frame_count(total, video_fps, VisualOptions(fps=fps))
    assert got == utility_count(total, video_fps, 2.0 if fps is None else fps)
    assert got % 2 == 0
    assert 2 <= got <= min(768, total)


def test_published_defaults():
    # Ten seconds at 30 per second: 2 per second. A second: at least 4. An hour: at most 768.
    assert frame_count(300, 30, VisualOptions()) == 20
    assert frame_count(30, 30, VisualOptions()) == 4
    assert frame_count(108_000, 30, VisualOptions()) == 768
    assert frame_count(3, 30, VisualOptions()) == 2
    assert frame_count(1, 30, VisualOptions()) == 1


def test_count_by_number():
    # Rounded to even, halves to the even half: 5 / 2 = 2.5 -> 2, 7 / 2 = 3.5 -> 4.
    assert frame_count(100, 30, VisualOptions(nframes=5)) == 4
    assert frame_count(100, 30, VisualOptions(nframes=7)) == 8
    assert frame_count(100, 30, VisualOptions(min_frames=9)) == 10
    assert frame_count(1000, 10, VisualOptions(max_frames=9)) == 8
    for options in (VisualOptions(nframes=200), VisualOptions(nframes=1), VisualOptions(max_frames=1)):
        with pytest.raises(VideoError, match="of 100"):
            frame_count(100, 30, options)


def test_range():
    assert frame_range(100, 10, VisualOptions()) == (0, 99)
    assert frame_range(100, 10, VisualOptions(video_start=2.05)) == (21, 99)
    assert frame_range(100, 10, VisualOptions(video_end=2.05)) == (0, 20)
    assert frame_range(100, 10, VisualOptions(video_start=1, video_end=1000)) == (10, 99)
    for start, end in ((5, 5), (6, 5), (100, None), (None, 0)):
        with pytest.raises(VideoError, match=r"the video has 10\.00 seconds"):
            frame_range(100, 10, VisualOptions(video_start=start, video_end=end))


def test_limits():
    token = 28 * 28
    published = {"least": 4 * token, "most": 16384 * token}
    assert frame_limits(4, 28, VisualOptions(), **published) == (128 * token, 768 * token)
    # 768 frames share 24576 visual tokens, two frames to a token: 64 each, but never under the lower limit.
    assert frame_limits(768, 28, VisualOptions(), **published) == (128 * token, int(128 * token * 1.05))
    assert frame_limits(100, 28, VisualOptions(), **published)[1] == 24576 * token / 100 * 2
    total = VisualOptions(total_pixels=4000 * token)
    assert frame_limits(20, 28, total, **published)[1] == 400 * token
    assert frame_limits(4, 28, VisualOptions(max_pixels=50 * token), **published) == (50 * token, 50 * token)
    # An upper limit over what the total allows does not lift it.
    assert frame_limits(4, 28, VisualOptions(max_pixels=5000 * token), **published)[1] == 768 * token
    assert frame_limits(4, 28, VisualOptions(min_pixels=2 * token), **published) == (2 * token, 768 * token)
    # A bundle whose pictures are small gets small frames.
    assert frame_limits(4, 28, VisualOptions(), least=4 * token, most=36 * token) == (36 * token, 36 * token)
