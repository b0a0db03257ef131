"""smart_resize against transformers, over random sizes and limits."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError

side = st.integers(1, 12_000)


@settings(max_examples=500, deadline=None)
@given(side, side, st.integers(1, 300_000), st.integers(1, 13_000_000))
# Halves round to even: 42 / 28 = 1.5 -> 2, 70 / 28 = 2.5 -> 2, 98 / 28 = 3.5 -> 4.
@example(42, 70, 1, 10**7)
@example(70, 98, 1, 10**7)
# A side under 14 pixels rounds to none at all, which enlarges the picture.
@example(10, 1000, 3136, 10**6)
@example(1, 200, 3136, 10**6)
def test_equals_the_reference(height, width, low, high):
    assume(low <= high and max(height, width) <= 200 * min(height, width))
    assert _core.smart_resize(height, width, 28, low, high) == reference(height, width, 28, low, high)


def test_fractional_limits_of_videos():
    high = 24576 * 784 / 7 * 2
    assert _core.smart_resize(3000, 4000, 28, 100352, high) == reference(3000, 4000, 28, 100352, high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 28, 1, 2), "5 x 0 pixels .* is empty"),
        ((5, -1, 28, 1, 2), "empty"),
        ((1, 201, 28, 1, 2), "aspect ratio of 201; the model takes at most 200: crop it"),
        ((40200, 200, 28, 1, 2), "aspect ratio"),
        ((2**25, 2**24, 28, 1, 2), "side over"),
        ((50, 50, 28, 3, 2), "min_pixels 3 and max_pixels 2"),
        ((50, 50, 28, 0, 2), "min_pixels 0"),
        ((50, 50, 28, float("nan"), 2), "min_pixels"),
        ((50, 50, 28, 1, float("inf")), "max_pixels"),
        ((50, 50, 0, 1, 2), "factor"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        _core.smart_resize(*arguments)


def test_an_aspect_ratio_of_200_is_allowed():
    assert _core.smart_resize(10, 2000, 28, 3136, 10**6) == reference(10, 2000, 28, 3136, 10**6)
