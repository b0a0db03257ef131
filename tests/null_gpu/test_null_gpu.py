"""ONNX Runtime's CUDA provider, and the cuda backend on it, on a GPU that does nothing: `make test-null-gpu`.

Nothing is computed, so no answer means anything. But the provider is the real one: it loads lowered graphs
with the kernels that it has for them, allocates, records and waits as it would on a GPU.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.random_bundle import write_random_bundle
from bench.random_checkpoint import published_config
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import Session
from qwen2vl_rt.backends import cuda
from tests.gpu import emulation
from tests.gpu.checkpoint import small_checkpoint

try:
    NULL: Any = ctypes.CDLL("libnullgpu.so")
except OSError:
    pytest.skip("needs the null GPU's libraries: make test-null-gpu", allow_module_level=True)
for name in ("used", "most", "launches", "products", "copies_to_host", "waits", "replays", "forbidden"):
    getattr(NULL, f"null_gpu_{name}").restype = ctypes.c_long

PICTURE = np.zeros((100, 150, 3), np.uint8)
KINDS = ("fp32", "bf16", "fp16", "int8", "int4", "int4-int8")
ENVIRONMENTS = [
    {},
    {"QWEN2VL_CUDA_CALLS": "python"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_CALLS": "python"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_GRAPHS": "0"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_ATTENTION": "portable"},
]


def counted(name: str) -> int:
    return getattr(NULL, f"null_gpu_{name}")()


@pytest.fixture(autouse=True)
def _nothing_runs():
    """The emulated half's kernels don't run either; its memory is the host's, as the null GPU's is."""
    emulation.share_memory(True)
    emulation.idle(True)
    yield
    emulation.idle(False)
    emulation.share_memory(False)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("null-gpu")
    checkpoint = small_checkpoint(folder / "checkpoint")
    return {kind: export_checkpoint(checkpoint, folder / kind, kind).path for kind in KINDS}


def answer(session: Session, tokens: int, picture: bool = False) -> None:
    images = [PICTURE] if picture else None
    session.generate("Hello there.", images=images, max_new_tokens=tokens, ignore_eos=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda one: " ".join(one.values()) or "as it is")
def test_sessions_run_in_every_way(bundles, monkeypatch, kind, environment):
    """Every node has a kernel there; nothing that a recording forbids; all memory comes back."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forbidden, used = counted("forbidden"), counted("used")
    with Session(
        bundles[kind], backend="cuda", max_length=256, max_batch=2, max_pixels=28 * 28 * 64
    ) as session:
        assert session.backend.name == "cuda"
        answer(session, 5)
        answer(session, 3, picture=True)
        prompts = ["Hello.", {"prompt": "?", "images": [PICTURE]}, "One more."]
        session.generate_batch(prompts, max_new_tokens=6, ignore_eos=True)
        answer(session, 1)
        NULL.null_gpu_reset()
        answer(session, 1)  # the same prompt, of which the cache knows as much as the next time
        prompt = {name: counted(name) for name in ("launches", "products", "replays", "copies_to_host")}
        NULL.null_gpu_reset()
        answer(session, 9)  # a prompt, and eight steps
        steps = {name: counted(name) - prompt[name] for name in prompt}
        own = environment.get("QWEN2VL_CUDA_LAYERS") != "onnxruntime"
        portable = environment.get("QWEN2VL_CUDA_ATTENTION") == "portable" or kind == "fp32"
        recorded = environment.get("QWEN2VL_CUDA_GRAPHS") != "0" and not own and not portable
        if own:  # ONNX Runtime has no part in them
            assert not any(steps.values())
        elif recorded:
            assert steps == {"launches": 0, "products": 0, "replays": 8, "copies_to_host": 0}
        else:
            assert steps["launches"] > 8 and steps["replays"] == 0
        if own or recorded:
            assert counted("waits") == 0
    assert counted("forbidden") == forbidden
    assert counted("used") == used


@pytest.mark.parametrize("kind", ["bf16", "int4"])
@pytest.mark.parametrize("layers", ["own", "onnxruntime"])
@pytest.mark.parametrize(("side", "length", "batch"), [(448, 2048, 1), (1792, 8192, 1), (448, 4096, 4)])
def test_memory_is_what_was_planned(tmp_path, monkeypatch, kind, layers, side, length, batch):
    """All that is allocated, at the 2B model's sizes, within a tenth of the plan less the CUDA context."""
    monkeypatch.setenv("QWEN2VL_CUDA_LAYERS", layers)
    bundle = write_random_bundle(tmp_path / kind, published_config("2b"), kind).path

    def own() -> int:
        info = cuda.load().device_info()
        return info.total_bytes - info.free_bytes

    tokens = (side // 28) ** 2
    count = (length - 64) // (tokens + 2)

    def pictures(row: int) -> list[np.ndarray]:
        return [np.full((side, side, 3), (row * count + i) % 256, np.uint8) for i in range(count)]

    before = own()
    with Session(
        bundle, backend="cuda", max_length=length, max_batch=batch, max_pixels=side * side
    ) as session:
        parts = session.plan().parts
        planned = sum(parts.values()) - parts["CUDA context"]
        NULL.null_gpu_reset()
        encode, held = session._model.encode, []

        def encode_all(*arguments: object) -> object:
            embeddings = encode(*arguments)
            held.append(own())  # with the patches and embeddings of all prompts
            return embeddings

        monkeypatch.setattr(session._model, "encode", encode_all)
        prompts = [{"prompt": f"{row}", "images": pictures(row)} for row in range(batch)]
        session.generate_batch(prompts, max_new_tokens=2, ignore_eos=True)
        if count >= 4:  # frame pairs share a call, which pictures in the GPU's memory do not
            session.generate("?", videos=[pictures(0)[:1] * 8], max_new_tokens=2, ignore_eos=True)
        session.generate("x " * (length // 4), max_new_tokens=4, ignore_eos=True)
        session.generate_batch(["x " * 20] * batch, max_new_tokens=6, ignore_eos=True)
        taken = counted("most") + max(*held, own()) - before
    print(f"{taken >> 20} MiB of {planned >> 20}")
    assert 0.9 * planned <= taken <= 1.1 * planned
