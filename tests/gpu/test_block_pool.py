"""Memory that is given out again: by the pool, and so by what prepares frames and what encodes them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import CancelToken, Session, _core
from qwen2vl_rt.backends.device.vision import DeviceVisionTower
from qwen2vl_rt.geometry import DecoderGeometry, Geometry, SpecialIds, VisionGeometry
from qwen2vl_rt.loaded_model import LoadedModel
from qwen2vl_rt.processing.device_frames import DeviceFrames
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.visuals import prepare_picture
from tests.gpu.arrays import to_host
from tests.support.preparation import noise

SETTINGS = PixelSettings.from_config({})


def test_a_block_that_nobody_holds_is_given_out_again(device):
    pool = _core.BlockPool(device)
    first, second = pool.take(1000), pool.take(2000)
    third = pool.take(1000)  # more than are kept
    assert len({first.pointer, second.pointer, third.pointer}) == 3
    small, large = first.pointer, second.pointer
    del first, second, third
    again = pool.take(900)
    assert again.pointer == small  # the smallest that is large enough
    assert pool.take(900).pointer == large
    assert pool.take(3000).bytes == 3000  # in the place of one that nobody holds
    assert again.pointer == small
    assert pool.take(3000).bytes == 3000


def test_frames_are_prepared_in_the_memory_of_those_before(device):
    frames = DeviceFrames(device, "float32", None)
    options = VisualOptions(resized_height=56, resized_width=56)

    def prepared(seed):
        pixels = noise(seed, 64, 64)
        return pixels, prepare_picture(pixels, options, SETTINGS, frames=frames)[0].patches

    def assert_right(pixels, patches):
        expected = prepare_picture(pixels, options, SETTINGS)[0].patches
        np.testing.assert_array_equal(to_host(patches.block, patches.shape, np.float32), expected)

    first, second = prepared(1), prepared(2)
    assert_right(*first)
    assert_right(*second)
    places = {first[1].block.pointer, second[1].block.pointer}
    assert len(places) == 2
    del first, second
    third = prepared(3)
    assert third[1].block.pointer in places
    assert_right(*third)
    uploaded = frames.upload(noise(4, 64, 64)).pointer
    assert frames.upload(noise(5, 64, 64)).pointer == uploaded


class NoTower(DeviceVisionTower):
    """Queues nothing."""

    def enqueue(self, tensors):
        """Nothing."""


def test_embeddings_lie_in_the_memory_of_those_before(device):
    decoder = DecoderGeometry(32, 1, 2, 1, 16, 64, 100, 1e6, (2, 3, 3), 1e-6, tied_embedding=True)
    vision = VisionGeometry(1, 32, 2, 64, 14, 2, 2, 3)
    tower = NoTower(device, Geometry(decoder, vision, SpecialIds(0, 1, 2, 3, (4,), 5)), np.float32)
    patches, tables = np.zeros((1, 4, 1176), np.float32), np.zeros((4, 8), np.float32)
    embeddings = tower.encode(patches, tables, tables)
    visual, place = embeddings.visual(0, 1), embeddings.block.pointer  # what a request holds
    del embeddings
    other = tower.encode(patches, tables, tables)
    assert other.block.pointer != place
    del visual
    assert tower.encode(patches, tables, tables).block.pointer == place


def test_a_call_without_an_answer_waits_for_what_reads_its_patches(tmp_path, monkeypatch):
    """Their memory is another frame's as soon as the prompts are gone."""
    waits = []
    monkeypatch.setattr(LoadedModel, "synchronize", lambda _: waits.append("waited"))
    bundle = export_checkpoint(TINY, tmp_path / "tiny").path
    with Session(bundle, backend="cpu", max_length=256) as session:
        session.generate("Hello.", max_new_tokens=2)
        assert not waits
        with monkeypatch.context() as broken, pytest.raises(ValueError, match="stopped"):
            broken.setattr(LoadedModel, "_requests", lambda *_: (_ for _ in ()).throw(ValueError("stopped")))
            session.generate("Hello.", max_new_tokens=2)
        assert len(waits) == 1
        cancel = CancelToken()
        monkeypatch.setattr(LoadedModel, "encode", lambda *_: cancel.cancel() or [])  # in time for the loop
        session.generate("Hello again.", max_new_tokens=2, cancel=cancel)
        assert len(waits) == 2
