"""TensorRT's decode steps as recordings, on an emulated GPU: stand-ins queue their work as engines do."""

from __future__ import annotations

import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import cuda
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.executors.tensorrt import tensorrt_decoder
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

    def __init__(self, bundle, folder, monkeypatch, attention, queue):
        if not emulation.is_emulated():
            pytest.skip("stand-ins compute on the CPU")
        self._bundle = bundle
        self.expected = token_ids(cpu_loop(bundle, LIMITS).generate(requests(bundle)))
        emulation.share_memory(True)
        self.stream = cuda.load().Stream()
        self.device = cuda.load().CudaDevice(self.stream)
        build_stand_ins(monkeypatch, bundle, LIMITS, folder, attention)
        (chosen,) = found(bundle, folder)
        on_stream = emulation.queue_on(self.stream.handle)
        self.engines = open_stand_ins(
            bundle, chosen, self.device, queue=lambda function: queue(self, function, on_stream)
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
    garbage += [recorded.device.allocate(64) for _ in range(200)]
    recorded.assert_answers_twice()
    decode = [one for one in recorded.engines.answer.executions if one.profile == "decode"]
    # Of each number of rows and slot of results a step to warm up and one to record: replays enqueue nothing.
    assert [one.runs for one in decode] == [4, 4]


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
