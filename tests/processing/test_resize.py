"""The compiled bicubic resize against Pillow: equal to the last bit, for any sizes and strides."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.patches import pillow_starts_vertically
from tests.support.preparation import noise

# Small sides are as likely as large ones.
side = st.one_of(st.integers(1, 8), st.integers(1, 64), st.integers(1, 700))


def pillow(frame, height, width):
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BICUBIC)
    )


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32 - 1), side, side, side, side)
@example(0, 1, 1, 1, 1)
@example(1, 1, 1, 700, 700)  # enlarged from one pixel
@example(2, 700, 700, 1, 1)  # shrunk to one
@example(3, 3, 700, 700, 3)
@example(4, 700, 3, 3, 700)  # much lower, wider: Pillow's newer releases start vertically here
@example(5, 300, 200, 300, 180)  # one axis stays
@example(6, 300, 200, 280, 200)
def test_equals_pillow(seed, height, width, new_height, new_width):
    frame = noise(seed, height, width)
    if seed % 3 == 0:
        frame = (frame > 127).astype(np.uint8) * 255  # the hardest edges overshoot and are clipped
    expected = pillow(frame, new_height, new_width)
    got = _core.resize_bicubic(frame, new_height, new_width, pillow_starts_vertically())
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("seed", range(12))
def test_pass_orders(seed):
    """Both orders, whichever the installed Pillow takes: two calls of Pillow with one axis each."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(200, 400, 2).tolist()
    new_height, new_width = generator.integers(1, 80, 2).tolist()
    new_width += width - 20
    frame = noise(seed, height, width)
    horizontal = pillow(pillow(frame, height, new_width), new_height, new_width)
    vertical = pillow(pillow(frame, new_height, width), new_height, new_width)
    assert (horizontal != vertical).any()
    np.testing.assert_array_equal(_core.resize_bicubic(frame, new_height, new_width, False), horizontal)
    np.testing.assert_array_equal(_core.resize_bicubic(frame, new_height, new_width, True), vertical)
    # The newer rule differs only where the height shrinks by more than twice what the width does.
    shorter = _core.resize_bicubic(frame, height - 10, width - 5, True)
    np.testing.assert_array_equal(shorter, _core.resize_bicubic(frame, height - 10, width - 5, False))


def test_strides():
    frame = noise(3, 90, 130, 4)
    views = [
        frame[:, :, :3],
        frame[:, :, 2::-1],  # BGR
        frame[::-1, ::2, 1:],
        frame.transpose(1, 0, 2)[:, :, :3],
        np.broadcast_to(frame[:, :, :1], (90, 130, 3)),
        np.broadcast_to(frame[0, 0, :3], (40, 30, 3)),
    ]
    for view in views:
        for size in ((50, 70), view.shape[:2]):
            expected = pillow(view, *size)
            np.testing.assert_array_equal(
                _core.resize_bicubic(view, *size, pillow_starts_vertically()), expected
            )


def test_the_number_of_threads_does_not_show():
    frame = noise(4, 500, 333)
    results = []
    for threads in (1, 2, 7):
        _core.set_threads(threads)
        results.append(_core.resize_bicubic(frame, 300, 411, True))
    _core.set_threads(0)
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_refuses_other_frames(frame):
    with pytest.raises(InputError):
        _core.resize_bicubic(frame, 28, 28, False)


def test_refuses_empty_results():
    with pytest.raises(InputError):
        _core.resize_bicubic(np.zeros((4, 4, 3), np.uint8), 0, 28, False)
