"""The calibration set's maker: its pictures are shipped, so all photographs in them are free of rights."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("torch")

from models.training import draw, make_calibration


def test_photographs_are_the_free_ones(tmp_path, monkeypatch):
    shown, photo = set(), draw.photo

    def recorded(name):
        shown.add(name)
        return photo(name)

    monkeypatch.setattr(draw, "photo", recorded)
    monkeypatch.setattr(make_calibration, "SAMPLES", {"scene": 12, "printed": 12, "video": 12, "several": 12})
    make_calibration.make(tmp_path)
    assert shown == set(draw.HELD_OUT_PHOTOS)
