"""Backgrounds and the sizes of training's pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from models.training import draw


def test_resized_pictures_went_through_a_size_of_up_to_13_pixels_less():
    """All frames of a video through the same one, drawn anew for each sample; the sides stay."""
    height, width = 28, 42
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)

    def through(size: tuple[int, int]) -> bytes:
        images = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]
        return b"".join(image.resize((width, height), Image.Resampling.BICUBIC).tobytes() for image in images)

    sizes = itertools.product(range(14), range(14))
    less = {through((width - across, height - down)): (across, down) for across, down in sizes}
    drawn = []
    for seed in range(40):
        result = draw.resized(np.random.default_rng(seed), frames)
        assert (result.dtype, result.shape) == (np.uint8, frames.shape)
        assert result.tobytes() == draw.resized(np.random.default_rng(seed), frames).tobytes()
        assert result.tobytes() in less
        drawn.append(less[result.tobytes()])
    for side in zip(*drawn, strict=True):
        assert min(side) < 3 and max(side) > 10


def test_photographs_of_the_evaluation_are_not_trainings():
    assert not set(draw.TRAINING_PHOTOS) & set(draw.HELD_OUT_PHOTOS)
    # A scene's record knows what was put on the table, not what a photograph behind it shows: a cup.
    assert set(draw.HELD_OUT_BACKGROUNDS) == set(draw.HELD_OUT_PHOTOS) - {"coffee.png"}


def test_a_background_takes_only_the_photographs_it_is_given(monkeypatch):
    taken = set()
    photo = draw.photo
    monkeypatch.setattr(draw, "photo", lambda name: taken.add(name) or photo(name))
    for seed in range(80):
        canvas = draw.background(np.random.default_rng(seed), 56, 84, draw.HELD_OUT_BACKGROUNDS)
        assert canvas.shape == (84, 56, 3) and canvas.dtype == np.float32
        assert canvas.min() >= 0 and canvas.max() <= 255
    assert taken == set(draw.HELD_OUT_BACKGROUNDS)
