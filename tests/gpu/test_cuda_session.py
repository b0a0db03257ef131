"""Session on the cuda backend, from pictures to answers: those of the cpu backend, in float32.

On an emulated GPU the engine is ONNX Runtime's CPU provider; everything around it is what runs on a real one.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import MemoryLimitError, Session
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda import provider
from qwen2vl_rt.backends.cuda.backend import CudaBackend
from tests.gpu import emulation
from tests.gpu.arrays import to_device
from tests.gpu.test_cuda_backend import provider_of
from tests.gpu.test_frames_in_place import CudaArray
from tests.support.preparation import noise

pytestmark = pytest.mark.gpu

SIZES = {"max_length": 512, "max_batch": 2, "max_pixels": 140 * 112}
QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return export_checkpoint(TINY, tmp_path_factory.mktemp("cuda-session") / "tiny").path


@pytest.fixture
def backend(monkeypatch) -> None:
    """The cuda backend, on whichever GPU there is."""
    if emulation.is_emulated():
        device = cuda.load().CudaDevice(cuda.load().Stream())
        monkeypatch.setattr(provider, "cuda_provider", lambda *_: provider_of(device, compiled=True))
        monkeypatch.setattr(CudaBackend, "missing", staticmethod(lambda: ""))


def ask(session: Session, picture: object) -> list[object]:
    """Token ids of one question after another, in every way to ask."""
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Describe it."}],
        }
    ]
    first = session.generate(conversation, max_new_tokens=6)
    conversation += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    second = session.generate(conversation, max_new_tokens=6)
    assert second.usage.cached_tokens > 0
    prompts = [{"prompt": QUESTION, "images": [picture]}, "Hello.", {"prompt": "?", "max_new_tokens": 2}]
    batch = session.generate_batch(prompts, max_new_tokens=8, ignore_eos=True)
    sampled = session.generate(QUESTION, images=[picture], temperature=1.0, seed=5, max_new_tokens=6)
    video = [noise(number, 56, 84) for number in range(4)]
    watched = session.generate("What happens?", videos=[video], fps=2, max_new_tokens=4)
    with session.stream(QUESTION, images=[picture], max_new_tokens=6) as stream:
        text = "".join(stream)
    assert text == stream.answer.text
    answers = [first, second, *batch, sampled, watched, stream.answer]
    return [answer.token_ids for answer in answers]


def test_answers_are_the_cpu_backends(bundle, backend):
    pixels = noise(3, 90, 120)
    with Session(bundle, backend="cpu", **SIZES) as session:
        expected = ask(session, pixels)
    with Session(bundle, backend="cuda", **SIZES) as session:
        assert session.backend.name == "cuda"
        assert session.plan().parts["KV cache"] > 0
        assert ask(session, pixels) == expected
        device = cuda.load().CudaDevice(cuda.load().Stream())
        frame = CudaArray(to_device(device, pixels), pixels.shape)
        device.synchronize()
        found = session.generate(QUESTION, images=[frame], temperature=1.0, seed=5, max_new_tokens=6)
        assert found.token_ids == expected[5]


def test_threads_take_turns(bundle, backend):
    pictures = [noise(number, 56 + 28 * number, 84) for number in range(3)]
    with Session(bundle, backend="cuda", **SIZES) as session:

        def answer(number):
            return session.generate(QUESTION, images=[pictures[number]], max_new_tokens=3).token_ids

        expected = [answer(number) for number in range(3)]
        found: dict[int, list[object]] = {0: [], 1: [], 2: []}

        def work(number):
            for _ in range(2):
                found[number].append(answer(number))

        threads = [threading.Thread(target=work, args=(number,)) for number in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert found == {number: [expected[number]] * 2 for number in found}


def test_a_session_gives_back_what_it_took(bundle, backend):
    picture = np.zeros((84, 56, 3), np.uint8)

    def used():
        with Session(bundle, backend="cuda", **SIZES) as session:
            session.generate(QUESTION, images=[picture], max_new_tokens=4)
            inside = cuda.load().device_info().free_bytes
        return inside

    used()
    before = cuda.load().device_info().free_bytes
    inside = used()
    after = cuda.load().device_info().free_bytes
    assert inside < before
    slack = 0 if emulation.is_emulated() else 64 << 20  # somebody else may be there, too
    assert abs(after - before) <= slack


def test_a_session_that_does_not_fit_takes_nothing(bundle, backend):
    before = cuda.load().device_info()
    with pytest.raises(MemoryLimitError, match="max_length="):
        Session(bundle, backend="cuda", max_length=1 << 30)
    assert cuda.load().device_info().free_bytes == before.free_bytes
