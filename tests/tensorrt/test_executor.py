"""The executor on the CPU as a device, an engine of the lowered graph in TensorRT's place."""

from __future__ import annotations

import numpy as np
import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.backends.cpu.executors import CpuVision
from qwen2vl_rt.backends.tensorrt.executors import TensorRTVision, tensorrt_decoder
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.session_limits import SessionLimits
from tests.support.bundle_loop import cpu_loop, decoder_loop, requests, token_ids
from tests.support.random_model import random_model, save_checkpoint
from tests.support.tensorrt_stand_in import build_stand_ins, found, open_stand_ins

LIMITS = SessionLimits(max_length=64, max_batch=2, max_pixels=28 * 28 * 16, prefill_chunk=9)
FORMS = ("lengths", "mask", "primitives")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("executor")
    wide = random_model(5, tied=True, hidden_size=128, heads=4, mlp_size=128, mrope_section=(4, 6, 6))
    checkpoint = save_checkpoint(wide, folder / "checkpoint")
    return {
        kind: export_checkpoint(checkpoint, folder / kind, kind) for kind in ("fp32", "fp16", "int4-int8")
    }


def opened(monkeypatch, bundle, folder, attention, number_format=None, **faults):
    if number_format:  # what a quantized bundle computes in exactly
        monkeypatch.setattr("qwen2vl_rt.backends.tensorrt.build.choose_format", lambda *_: number_format)
    build_stand_ins(monkeypatch, bundle, LIMITS, folder, attention)
    (chosen,) = found(bundle, folder)
    return open_stand_ins(bundle, chosen, **faults)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("precision", ["fp32", "int4-int8"])
def test_answers_equal_the_cpu_backends(exported, tmp_path, monkeypatch, precision, attention):
    """Chunks, rows that finish and move, a prompt's own decoder: token for token.

    The cpu backend's int4 products round their activations, so that int4's answers part after a while.
    """
    bundle = exported[precision]
    expected = cpu_loop(bundle, LIMITS).generate(requests(bundle))
    engines = opened(monkeypatch, bundle, tmp_path, attention, "fp32")
    steps, _, engine = tensorrt_decoder(bundle, LIMITS, engines)
    assert engine.recordable()
    loop = decoder_loop(bundle, steps)
    same = slice(None if precision == "fp32" else 4)
    actual = loop.generate(requests(bundle))
    assert [one.token_ids[same] for one in actual] == [one.token_ids[same] for one in expected]
    assert sum(one.runs for one in engines.prompt.executions if one.profile == "prefill") == 3 + 1 + 2
    profiles = [(one.profile, one.fixed) for one in engines.answer.executions]
    decode = [("decode", True)] * 2  # one row, two rows
    assert profiles == (decode if precision == "int4-int8" else [("prefill", False), *decode])
    again = loop.generate(requests(bundle))
    assert token_ids(again) == token_ids(actual)


@pytest.mark.parametrize("attention", ["mask", "primitives"])
def test_16_bit_buffers(exported, tmp_path, monkeypatch, attention):
    """Half the bytes in every address: the first steps choose what the cpu backend chooses."""
    bundle = exported["fp16"]
    expected = cpu_loop(bundle, LIMITS).generate(requests(bundle))
    engines = opened(monkeypatch, bundle, tmp_path, attention)
    assert engines.dtype == "float16"
    steps, _, _ = tensorrt_decoder(bundle, LIMITS, engines)
    actual = decoder_loop(bundle, steps).generate(requests(bundle))
    for one, other in zip(actual, expected, strict=True):
        assert one.token_ids[:4] == other.token_ids[:4]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vision_equals_the_cpu_backends(exported, tmp_path, monkeypatch, precision):
    """One picture, several, more than the engine takes at once, and large ones that go one by one."""
    bundle, rng = exported[precision], np.random.default_rng(1)
    geometry = bundle.geometry.vision
    vision = TensorRTVision(bundle, opened(monkeypatch, bundle, tmp_path, "mask"))
    reference = CpuVision(bundle, 2)
    for pictures, patches in ((1, 64), (3, 24), (11, 8)):
        tables = [rng.standard_normal((patches, geometry.head_dim // 2), dtype=np.float32) for _ in "cs"]
        inputs = rng.standard_normal((pictures, patches, geometry.patch_values), dtype=np.float32)
        expected, actual = reference.encode(inputs, *tables), vision.encode(inputs, *tables).numpy()
        assert actual.dtype == np.float32
        tolerance = (1e-4 if precision == "fp32" else 1e-2) * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    assert [one.runs for one in vision_executions(vision)] == [1, 3]
    vision._most_patches = 16
    inputs = rng.standard_normal((2, 24, geometry.patch_values), dtype=np.float32)
    tables = [rng.standard_normal((24, geometry.head_dim // 2), dtype=np.float32) for _ in "cs"]
    assert vision.encode(inputs, *tables).numpy().shape[:2] == (2, 6)
    assert [one.runs for one in vision_executions(vision)] == [3, 3]


def vision_executions(vision):
    return vision._picture, vision._frames
