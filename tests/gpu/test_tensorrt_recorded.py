"""TensorRT's decode steps as recordings, on an emulated GPU: stand-ins queue their work as engines do."""

from __future__ import annotations

from collections import Counter

import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.tensorrt.check import expected_for, run_check
from qwen2vl_rt.backends.tensorrt.check_inputs import BATCH_REPLAY, REPLAY, check_steps
from qwen2vl_rt.backends.tensorrt.executors import tensorrt_decoder
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.session_limits import SessionLimits
from tests.gpu import emulation
from tests.gpu.checkpoint import small_checkpoint
from tests.support.bundle_loop import cpu_loop, decoder_loop, requests, token_ids
from tests.support.tensorrt_stand_in import build_stand_ins, found, open_stand_ins

pytestmark = pytest.mark.gpu

LIMITS = SessionLimits(max_length=64, max_batch=2, max_pixels=28 * 28 * 16, prefill_chunk=9)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    return export_checkpoint(small_checkpoint(folder / "checkpoint"), folder / "bundle")


class Recorded:
    """A loop over stand-ins for engines, whose queueing goes through `queue(function, on_stream)`."""

    def __init__(self, bundle, folder, monkeypatch, attention, queue, misread=None):
        if not emulation.is_emulated():
            pytest.skip("stand-ins compute on the CPU")
        self._bundle = bundle
        self.expected = token_ids(cpu_loop(bundle, LIMITS).generate(requests(bundle)))
        emulation.share_memory(True)
        self.stream = cuda.load().Stream()
        self.device = cuda.load().CudaDevice(self.stream)
        build_stand_ins(monkeypatch, bundle, LIMITS, folder, attention)
        (self.chosen,) = found(bundle, folder)
        on_stream = emulation.queue_on(self.stream.handle)
        self.engines = open_stand_ins(
            bundle,
            self.chosen,
            self.device,
            queue=lambda function: queue(self, function, on_stream),
            misread=misread,
        )
        steps, _, _ = tensorrt_decoder(bundle, LIMITS, self.engines)
        self._loop = decoder_loop(bundle, steps)

    def assert_answers_twice(self):
        for _ in range(2):
            assert token_ids(self._loop.generate(requests(self._bundle))) == self.expected


@pytest.mark.parametrize("attention", ["mask", "primitives"])
def test_engine_and_kernels_are_one_recording(bundle, tmp_path, monkeypatch, attention):
    """Prompts and the first steps are queued one by one, all others replayed: the cpu backend's tokens."""
    garbage = []

    def queue(recorded, function, on_stream):
        garbage.pop()  # an engine's step is Python's, where memory may be let go of while a step is recorded
        on_stream(function)

    recorded = Recorded(bundle, tmp_path, monkeypatch, attention, queue)
    another = cuda.load().CudaDevice(cuda.load().Stream())  # another session's
    garbage += [device.allocate(64) for _ in range(100) for device in (recorded.device, another)]
    recorded.assert_answers_twice()
    decode = [one for one in recorded.engines.answer.executions if one.profile == "decode"]
    # Of each number of rows and slot of results a step to warm up and one to record: replays enqueue nothing.
    assert [one.runs for one in decode] == [4, 4]


@pytest.mark.parametrize("attention", ["mask", "primitives"])
@pytest.mark.parametrize("fault", ["none", "it keeps the lengths", "it is empty"])
def test_the_self_check_finds_what_is_wrong_with_a_recording(bundle, tmp_path, monkeypatch, attention, fault):
    """Of an engine whose steps are right when they are queued one by one."""
    kept = []

    def queue(recorded, function, on_stream):
        if fault == "none" or not emulation.is_recorded(recorded.stream.handle):
            on_stream(function)
        elif fault == "it keeps the lengths":
            past = function.__self__.array("past_length").copy()

            def replay():
                kept.append(past)
                function()
                kept.clear()

            on_stream(replay)

    recorded = Recorded(
        bundle, tmp_path, monkeypatch, attention, queue, lambda *_: kept[-1] if kept else None
    )
    expected = expected_for(bundle, recorded.chosen, 2)
    result = run_check(bundle, recorded.chosen, recorded.engines, "emulated", expected)
    assert list(result.differing) == ([] if fault == "none" else [REPLAY, BATCH_REPLAY])
    # Each direct step of one and of two rows, and a recording of both: replays enqueue nothing.
    steps = Counter(step.rows for step in check_steps(LIMITS) if not step.prompt and not step.replayed)
    runs = [one.runs for one in recorded.engines.answer.executions if one.profile == "decode" and one.runs]
    assert runs == [steps[1] + 1, steps[2] + 1]


def test_an_engine_that_cannot_be_recorded_runs_step_by_step(bundle, tmp_path, monkeypatch):
    """Although it said that it can: the step is not lost, and no later one is tried again."""
    refused = []

    def queue(recorded, function, on_stream):
        if emulation.is_recorded(recorded.stream.handle):
            refused.append(function)
            raise BackendError("this engine waits for its stream")
        on_stream(function)

    Recorded(bundle, tmp_path, monkeypatch, "mask", queue).assert_answers_twice()
    assert len(refused) == 1
