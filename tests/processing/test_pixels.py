"""Pictures and videos to patches, against transformers' slow Qwen2VLImageProcessor: equal to the last bit."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

from qwen2vl_rt.errors import BundleError, InputError
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.visuals import prepare_picture, prepare_video
from tests.support.preparation import PREPROCESSOR, noise

# The size in pixels of a picture, thin ones among them; up to the aspect ratio of 200.
sizes = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 4), st.integers(150, 200)),
    st.tuples(st.integers(500, 1000), st.integers(5, 30)),
)


def slow(**config):
    return Qwen2VLImageProcessor(**{**PREPROCESSOR, **config})


def picture(source, config, **options):
    return prepare_picture(source, VisualOptions(**options), PixelSettings.from_config(config))[0]


def assert_equals_picture(frame, config, **options):
    visual = picture(frame, config, **options)
    # The reference guesses where the channels are, and takes a picture of 1 or 3 rows for channels-first.
    expected = slow(**config)(Image.fromarray(frame), return_tensors="np", input_data_format="channels_last")
    assert list(visual.grid_thw) == expected["image_grid_thw"][0].tolist()
    assert visual.patches.dtype == expected["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(visual.patches.reshape(-1, 1176), expected["pixel_values"])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), sizes, st.sampled_from([784, 3136, 50_000]), st.sampled_from([50_000, 150_000])
)
@example(0, (1, 200), 3136, 50_000)
@example(1, (200, 1), 3136, 50_000)
@example(2, (900, 40), 784, 50_000)  # much lower: the order of Pillow's passes matters
@example(3, (56, 84), 3136, 50_000)  # already of the right size
def test_pictures(seed, size, low, high):
    height, width = size
    if max(size) > 200 * min(size):
        height = width = max(size)
    assert_equals_picture(noise(seed, height, width), {**PREPROCESSOR, "min_pixels": low, "max_pixels": high})


@pytest.mark.parametrize("seed", range(12))
def test_large_pictures(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(300, 1500, 2).tolist()
    assert_equals_picture(noise(seed, height, width), PREPROCESSOR)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.125]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127},
    ],
)
def test_other_value_settings(changes):
    config = {**PREPROCESSOR, **changes}
    visual = picture(noise(5, 70, 90), config)
    expected = slow(**changes)(Image.fromarray(noise(5, 70, 90)), return_tensors="np")
    np.testing.assert_array_equal(visual.patches.reshape(-1, 1176), expected["pixel_values"])


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_videos(count):
    frames = [noise(seed, 90, 120) for seed in range(count)]
    config = {**PREPROCESSOR, "max_pixels": 20_000}
    # With the limits of a picture, which is what the reference's processor applies to frames.
    options = VisualOptions(min_pixels=3136, max_pixels=20_000)
    visual, _ = prepare_video(frames, options, PixelSettings.from_config(config))
    expected = slow(max_pixels=20_000).preprocess(images=None, videos=[np.stack(frames)], return_tensors="np")
    assert list(visual.grid_thw) == expected["video_grid_thw"][0].tolist()
    np.testing.assert_array_equal(visual.patches.reshape(-1, 1176), expected["pixel_values_videos"])


def test_newer_spelling_of_the_limits():
    config = {**PREPROCESSOR, "size": {"shortest_edge": 10_000, "longest_edge": 20_000}}
    del config["min_pixels"], config["max_pixels"]
    settings_ = PixelSettings.from_config(config)
    assert (settings_.min_pixels, settings_.max_pixels) == (10_000, 20_000)
    assert (settings_.limited(15_000).max_pixels, settings_.limited(5_000).min_pixels) == (15_000, 5_000)


def test_limits_that_are_null_leave_it_to_the_newer_spelling():
    """transformers' fast processor saves them so where it was given `size`."""
    config = {**PREPROCESSOR, "size": {"shortest_edge": 10_000, "longest_edge": 2_000_000}}
    config |= {"min_pixels": None, "max_pixels": None}
    settings_ = PixelSettings.from_config(config)
    assert (settings_.min_pixels, settings_.max_pixels) == (10_000, 2_000_000)


def test_a_silent_configuration_gets_the_class_defaults():
    settings_, reference = PixelSettings.from_config({}), Qwen2VLImageProcessor()
    assert (settings_.min_pixels, settings_.max_pixels) == (reference.min_pixels, reference.max_pixels)
    visual = picture(noise(1, 60, 60), {})
    expected = reference(Image.fromarray(noise(1, 60, 60)), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(visual.patches.reshape(-1, 1176), expected)


def test_limits_of_one_picture():
    frame = noise(2, 500, 700)
    small = picture(frame, PREPROCESSOR, max_pixels=50_000)
    expected = slow(max_pixels=50_000)(Image.fromarray(frame), return_tensors="np")
    np.testing.assert_array_equal(small.patches.reshape(-1, 1176), expected["pixel_values"])
    large = picture(frame, PREPROCESSOR, min_pixels=2_000_000)
    assert np.prod(large.grid_thw) * 196 >= 2_000_000
    # An upper limit under the configured lower one wins.
    assert np.prod(picture(frame, PREPROCESSOR, max_pixels=1000).grid_thw) * 196 <= 1000


def test_exact_size_of_one_picture():
    visual = picture(noise(3, 500, 700), PREPROCESSOR, resized_height=100, resized_width=310)
    # Multiples of 28, halves to even: 100 / 28 = 3.57 -> 4, 310 / 28 = 11.07 -> 11.
    assert visual.grid_thw == (1, 8, 22)
    assert (visual.width, visual.height) == (700, 500)


def test_the_digest_tells_contents_apart():
    frame = noise(4, 60, 80)
    digest = picture(frame, PREPROCESSOR).digest
    assert len(digest) == 32
    assert digest == picture(Image.fromarray(frame), PREPROCESSOR).digest
    changed = frame.copy()
    changed[30, 40, 1] ^= 128
    assert digest != picture(changed, PREPROCESSOR).digest
    assert digest != picture(frame, PREPROCESSOR, max_pixels=3000).digest
    video, _ = prepare_video([frame], VisualOptions(), PixelSettings.from_config(PREPROCESSOR))
    assert digest != video.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        json.dumps({"patch_size": "14"}),
        json.dumps({"min_pixels": -1}),
        json.dumps({"resample": 2}),
        json.dumps({"do_resize": False}),
        json.dumps({"image_std": [0, 0, 0]}),
        json.dumps({"image_mean": [1, 2]}),
        json.dumps({"image_mean": "x"}),
        json.dumps({"rescale_factor": None}),
        json.dumps({"size": 3}),
    ],
)
def test_refuses_damaged_configurations(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(BundleError, match=r"preprocessor_config\.json"):
        PixelSettings.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixel": 5}, "unknown option 'max_pixel'; the options are min_pixels, "),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"max_pixels": "5"}, "max_pixels must be a number"),
        ({"max_pixels": True}, "max_pixels must be a number"),
        ({"max_pixels": 5.5}, "whole number"),
        ({"fps": float("nan")}, "fps must be a number"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"max_pixels": 10**400}, "must lie between"),
        ({"resized_height": 28}, "go together"),
        ({"min_pixels": 10, "max_pixels": 9}, "greater than"),
        ({"fps": 1, "nframes": 4}, "exclude each other"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(InputError, match=message):
        VisualOptions.from_mapping(options)


def test_numpy_scalars_are_numbers():
    given = {"max_pixels": np.int64(50_000), "nframes": np.uint8(8), "video_start": np.float32(1.5)}
    options = VisualOptions(**given)
    assert options == VisualOptions(max_pixels=50_000, nframes=8, video_start=1.5)
    assert {type(getattr(options, name)) for name in given} == {int, float}


def test_own_options_come_before_defaults():
    defaults = VisualOptions(resized_height=280, resized_width=280, fps=1, min_pixels=1000)
    assert VisualOptions(max_pixels=500).over(defaults) == VisualOptions(
        min_pixels=500, max_pixels=500, fps=1
    )
    assert VisualOptions(nframes=4).over(defaults).fps is None
    assert VisualOptions().over(defaults) == defaults
