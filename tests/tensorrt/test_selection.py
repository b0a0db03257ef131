"""Which engines a session is given, what it says where there are none, and whole sessions on stand-ins."""

from __future__ import annotations

import gc
import json
import os
import shlex
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import qwen2vl_rt
from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda import CudaStatus
from qwen2vl_rt.backends.cuda.backend import CudaBackend
from qwen2vl_rt.backends.device import memory
from qwen2vl_rt.backends.select import select_backend
from qwen2vl_rt.backends.tensorrt import edition as edition_module
from qwen2vl_rt.backends.tensorrt import engines, gpu, load
from qwen2vl_rt.backends.tensorrt.backend import TensorRTBackend
from qwen2vl_rt.backends.tensorrt.find import build_command, find_engines
from qwen2vl_rt.backends.tensorrt.target import Target
from qwen2vl_rt.bundle import EMBEDDING, Bundle
from qwen2vl_rt.cli import main
from qwen2vl_rt.errors import BackendError, EngineRefusedError, MemoryLimitError
from qwen2vl_rt.plan import PROCESS_BYTES
from qwen2vl_rt.session_limits import AskedLimits, SessionLimits
from tests.support.random_model import random_model, save_checkpoint
from tests.support.tensorrt_stand_in import (
    HERE,
    StandInEngine,
    build_stand_ins,
    found,
    patch_build,
    stand_in_edition,
)

LIMITS = SessionLimits(max_length=512, max_batch=2, max_pixels=112 * 112, prefill_chunk=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return export_checkpoint(TINY, tmp_path_factory.mktemp("source") / "bundle", "fp32").path


@pytest.fixture
def bundle(source, tmp_path) -> Bundle:
    """The tiny bundle in a folder of its own, without engines."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in source.iterdir():
        os.link(file, folder / file.name)
    return Bundle.open(folder)


def test_the_best_engines_come_first(bundle, monkeypatch):
    build_stand_ins(monkeypatch, bundle, LIMITS, attention="lengths")
    build_stand_ins(monkeypatch, bundle, LIMITS, target=Target(None, is_this=False))
    assert [(one.decoder.target, one.attention) for one in found(bundle)] == [
        ("sm89", "lengths"),
        ("portable", "mask"),
    ]
    build_stand_ins(monkeypatch, bundle, replace(LIMITS, max_length=300), attention="mask")
    build_stand_ins(monkeypatch, bundle, LIMITS, attention="mask")
    best, *others = found(bundle)
    assert (best.attention, best.limits.max_length) == ("mask", 300)
    assert [one.limits.max_length for one in others] == []
    best, *others = found(bundle, asked=AskedLimits(max_length=301))
    assert best.attention == "mask" and best.limits == replace(LIMITS, max_length=512)
    assert [one.attention for one in others] == ["lengths", "mask"]
    assert others[1].decoder.target == "portable"


def test_of_vision_engines_the_one_that_fits_goes_along(bundle, monkeypatch):
    """Built for one picture size, then for others: the decoder's engine is there already."""
    sizes = [28 * 28 * n for n in (16, 64, 256, 1024, 4096)]
    for size in sizes:
        build_stand_ins(monkeypatch, bundle, replace(LIMITS, max_pixels=size))
    for asked, fitting in [*zip(sizes, sizes, strict=True), (28 * 28 * 65, 28 * 28 * 256)]:
        (chosen,) = found(bundle, asked=AskedLimits(max_pixels=asked))
        assert chosen.limits.max_pixels == fitting
    (chosen,) = found(bundle)  # what the bundle itself asks for: 200704
    assert chosen.limits.max_pixels == 28 * 28 * 256


def test_limits_are_the_engines(bundle, monkeypatch):
    build_stand_ins(monkeypatch, bundle, LIMITS)
    (chosen,) = found(bundle)
    usual = SessionLimits(8192, 1, 1 << 20, 512)
    assert chosen.session_limits(usual) == SessionLimits(512, 1, 112 * 112, 64)
    usual = SessionLimits(8192, 2, 56 * 56, 16)
    assert chosen.session_limits(usual) == SessionLimits(512, 2, 56 * 56, 16)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (AskedLimits(max_length=513), "built for max_length=512, and 513 is asked for"),
        (AskedLimits(max_batch=3), "built for max_batch=2, and 3 is asked for"),
        (AskedLimits(max_pixels=1 << 20), "built for max_pixels=12544, and 1048576 is asked for"),
    ],
)
def test_engines_that_hold_too_little(bundle, monkeypatch, asked, reason):
    build_stand_ins(monkeypatch, bundle, LIMITS)
    with pytest.raises(BackendError, match=reason) as error:
        found(bundle, asked=asked)
    command = str(error.value).split("Build them: ")[1]
    assert command.startswith(f"qwen2vl build {bundle.path} --this --max-")


def test_the_command_can_be_pasted(bundle):
    spaced = replace(bundle, path=Path("my models/2B (new)"))
    assert shlex.split(build_command(spaced))[:4] == ["qwen2vl", "build", str(spaced.path), "--this"]


def test_engines_that_are_for_something_else(bundle, monkeypatch, tmp_path):
    with pytest.raises(BackendError, match=rf"no TensorRT engines .*qwen2vl build {bundle.path} --this$"):
        found(bundle)
    build_stand_ins(monkeypatch, bundle, LIMITS, target=Target((8, 6), is_this=False))
    with pytest.raises(BackendError, match="is for sm86, and the GPU here is sm89"):
        found(bundle)
    build_stand_ins(monkeypatch, bundle, LIMITS, tmp_path / "older", version="0.9")
    with pytest.raises(BackendError, match=r"made by TensorRT for RTX 0\.9, and 1\.0 is installed"):
        found(bundle, tmp_path / "older")
    build_stand_ins(monkeypatch, bundle, LIMITS, tmp_path / "gone")

    def not_installed(name):
        raise BackendError("TensorRT for RTX is not installed")

    with pytest.raises(BackendError, match="TensorRT for RTX is not installed"):
        find_engines(bundle, HERE, AskedLimits(), not_installed, tmp_path / "gone")
    next((tmp_path / "gone").glob("vision.*.engine")).unlink()
    with pytest.raises(BackendError, match="has no vision engine beside it"):
        found(bundle, tmp_path / "gone")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.pop("key"), "key is missing"),
        (lambda file: file["key"]["form"].pop("fp8"), "key: form: fp8 is missing"),
        (lambda file: file["key"].update(target=89), "key: target is 89, expected a string"),
        (
            lambda file: file["key"]["form"].update(attention="all"),
            "attention is 'all', expected one of mask",
        ),
        (lambda file: file["key"]["profiles"]["decode"].update(cos=[1]), "decode: cos is no range of shapes"),
        (lambda file: file.update(graph="encoder"), "graph is 'encoder', expected one of vision, prefill,"),
        (lambda file: file["inputs"].append("x"), "inputs: expected an object, found 'x'"),
        (lambda file: file["figures"].update(engine_bytes="8"), "figures: engine_bytes is '8'"),
        (lambda file: file.update(description_version=2), "description_version is 2, expected 3"),
    ],
)
def test_a_damaged_description(bundle, monkeypatch, damage, reason):
    """Its engine is passed over, and why is said."""
    build_stand_ins(monkeypatch, bundle, LIMITS)
    (path,) = (bundle.path / "engines").glob("decoder.*.json")
    description = json.loads(path.read_text())
    (chosen,) = found(bundle)
    assert json.loads(json.dumps(chosen.descriptions["decoder"].to_json())) == description
    damage(description)
    path.write_text(json.dumps(description))
    with pytest.raises(BackendError, match=rf"{path} does not describe its engine \(.*{reason}.*: build it"):
        found(bundle)


def test_engines_of_another_recipe(bundle, monkeypatch):
    """Another way to build the same graph: other files, and the older ones are left alone."""
    with monkeypatch.context() as older:
        older.setattr(engines, "RECIPE_VERSION", engines.RECIPE_VERSION - 1)
        build_stand_ins(monkeypatch, bundle, LIMITS)
    with pytest.raises(BackendError, match="built by another version of this package"):
        found(bundle)
    build_stand_ins(monkeypatch, bundle, LIMITS)
    (chosen,) = found(bundle)
    assert len(list((bundle.path / "engines").glob("decoder.*.engine"))) == 2
    assert chosen.decoder.recipe == engines.RECIPE_VERSION


def test_engines_of_another_export(bundle, monkeypatch, tmp_path):
    build_stand_ins(monkeypatch, bundle, LIMITS, tmp_path / "engines")
    other = export_checkpoint(
        save_checkpoint(random_model(1), tmp_path / "checkpoint"), tmp_path / "other", "fp32"
    )
    with pytest.raises(BackendError, match="made from another export of this bundle"):
        found(other, tmp_path / "engines")


# --- whole sessions ---------------------------------------------------------------------------------------


class _Stream:
    handle = 7

    def __init__(self, device=0):
        pass


class _Machine:
    """A machine whose GPU is the CPU and whose TensorRT is the stand-in."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch.setattr
        self.opened: list[StandInEngine] = []
        self.faults: dict = {}
        self.capability = HERE
        self.free, self.integrated = 8 << 30, False
        self.edition = stand_in_edition()
        module = SimpleNamespace(
            Stream=_Stream,
            CudaDevice=lambda stream: _core.HostDevice(),
            device_info=lambda device=0: SimpleNamespace(
                name="stand-in",
                driver_version=13000,
                integrated=self.integrated,
                free_bytes=self.free,
                total_bytes=16 << 30,
            ),
        )
        self.patch(cuda, "load", lambda: module)
        self.patch(cuda, "status", lambda: CudaStatus(True, "13.0", (89,), 1, ""))
        self.patch(gpu, "compute_capability", lambda: self.capability)
        self.patch(edition_module, "_loaded", {"tensorrt_rtx": self.edition})
        self.patch(edition_module, "MODULES", {"tensorrt_rtx": "TensorRT for RTX"})
        self.patch(load, "TensorRTEngine", self._open)
        patch_build(monkeypatch)

    def _open(self, edition, file, stream):
        assert edition is self.edition and stream == _Stream.handle
        self.opened.append(StandInEngine(self.bundle, file, **self.faults))
        return self.opened[-1]


@pytest.fixture
def machine(monkeypatch, bundle):
    made = _Machine(monkeypatch)
    made.bundle = bundle
    return made


QUESTIONS = [
    {"prompt": "What colour is the circle?", "images": [np.full((56, 84, 3), 90, np.uint8)]},
    {"prompt": "Describe the picture.", "images": [np.zeros((84, 56, 3), np.uint8)]},
    {"prompt": "Hello."},
]


def answers(session) -> list[list[int]]:
    return [answer.token_ids for answer in session.generate_batch(QUESTIONS, max_new_tokens=12)]


@pytest.mark.parametrize("name", ["auto", "tensorrt"])
def test_a_session_answers_as_on_the_cpu(bundle, machine, monkeypatch, name):
    """Found, planned, checked at its first run only, and used for text and pictures."""
    build_stand_ins(monkeypatch, bundle, LIMITS)
    with qwen2vl_rt.Session(bundle.path, backend="cpu", max_batch=2, max_pixels=112 * 112) as session:
        expected = answers(session)
    for _ in range(2):
        machine.opened.clear()
        with qwen2vl_rt.Session(bundle.path, backend=name, max_batch=2) as session:
            assert session.backend.name == "tensorrt"
            plan = session.plan()
            assert plan.limits == LIMITS
            assert plan.parts["scratch"] == 100 and plan.parts["decoder engine"] == 1000
            decoder = bundle.geometry.decoder
            assert (
                plan.parts["KV cache"]
                == 2 * 512 * 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * 4
            )
            assert answers(session) == expected
        assert len(machine.opened) == 2 and all(engine.kept == 2 for engine in machine.opened)
    assert len(list((bundle.path / "engines").glob("*.check.json"))) == 1


def test_without_engines(bundle, machine):
    with pytest.raises(BackendError, match=rf"no TensorRT engines .*qwen2vl build {bundle.path} --this"):
        qwen2vl_rt.Session(bundle.path, backend="tensorrt")
    chosen = select_backend("auto", bundle)
    assert chosen.name == "cpu" and "not tensorrt:" in chosen.reason and "qwen2vl build" in chosen.reason


def test_a_gpu_that_the_edition_does_not_support(bundle, machine, monkeypatch):
    """An H200: the project's own message, and `auto` moves on to cuda."""
    build_stand_ins(monkeypatch, bundle, LIMITS)
    machine.capability = (9, 0)
    with pytest.raises(BackendError, match=r"TensorRT for RTX 1\.0 does not build for sm90.*use the cuda"):
        qwen2vl_rt.Session(bundle.path, backend="tensorrt")
    monkeypatch.setattr(CudaBackend, "missing", staticmethod(lambda: ""))
    chosen = select_backend("auto", bundle)
    assert chosen.name == "cuda" and "not tensorrt:" in chosen.reason and "sm90" in chosen.reason


def test_wrong_engines_are_refused(bundle, machine, monkeypatch):
    build_stand_ins(monkeypatch, bundle, LIMITS, attention="mask")
    machine.faults = {"misread": lambda profile, shape, past: past + 1 if profile == "decode" else None}
    for _ in range(2):  # found out, then remembered
        with pytest.raises(EngineRefusedError, match="decode against a warm cache"):
            qwen2vl_rt.Session(bundle.path, backend="tensorrt")
    assert len(machine.opened) == 2
    with qwen2vl_rt.Session(bundle.path, max_length=256, max_pixels=112 * 112) as session:
        assert session.backend.name == "cpu"
        assert "decode against a warm cache" in session.backend.reason


def test_engines_that_do_not_open(bundle, machine, monkeypatch):
    build_stand_ins(monkeypatch, bundle, LIMITS)

    def fail(*_):
        raise BackendError("the driver is too old")

    monkeypatch.setattr(load, "TensorRTEngine", fail)
    with pytest.raises(BackendError, match="the driver is too old"):
        qwen2vl_rt.Session(bundle.path, backend="tensorrt")
    with qwen2vl_rt.Session(bundle.path, max_length=256, max_pixels=112 * 112) as session:
        assert session.backend.name == "cpu" and "the driver is too old" in session.backend.reason


def test_memory_is_planned_before_anything_is_opened(bundle, machine, monkeypatch):
    build_stand_ins(monkeypatch, bundle, LIMITS)
    machine.free = 1 << 20
    with pytest.raises(MemoryLimitError, match=r"smaller engines, such as qwen2vl build .* --max-length 256"):
        qwen2vl_rt.Session(bundle.path, backend="tensorrt")
    assert not machine.opened


def test_auto_goes_on_where_engines_do_not_fit(bundle, machine, monkeypatch):
    """And says so, on the backend that fits and in the error where none does."""
    build_stand_ins(monkeypatch, bundle, LIMITS)
    machine.free = 1 << 20
    with qwen2vl_rt.Session(bundle.path, max_length=256, max_pixels=112 * 112) as session:
        assert session.backend.name == "cpu" and "not tensorrt: This session needs" in session.backend.reason
        assert "\n" not in session.backend.reason
    with pytest.raises(MemoryLimitError, match=r"This session needs(.|\n)*not tensorrt: This session needs"):
        qwen2vl_rt.Session(bundle.path, max_length=256, max_pixels=112 * 112, memory_limit=1 << 20)
    assert not machine.opened


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "These engines would be passed over here."), (["--backend", "tensorrt"], "would be refused here.")],
)
def test_what_info_says_of_engines_that_do_not_fit(bundle, machine, monkeypatch, capsys, options, said):
    build_stand_ins(monkeypatch, bundle, LIMITS)
    machine.free = 1 << 20
    assert main(["info", str(bundle.path), *options]) == 0
    assert said in capsys.readouterr().err


def test_refused_engines_are_let_go_before_the_next_backend(bundle, machine, monkeypatch):
    """Their memory is the next backend's: a traceback must not hold it."""
    build_stand_ins(monkeypatch, bundle, LIMITS, attention="mask")
    machine.faults = {"misread": lambda profile, shape, past: past + 1 if profile == "decode" else None}
    alive = []
    select = qwen2vl_rt.session.select_backend

    def select_and_look(*arguments, **keywords):
        if keywords.get("refused"):
            engines = [weakref.ref(engine) for engine in machine.opened]
            machine.opened.clear()
            gc.collect()  # a stand-in and its executions know each other
            alive.extend(engine() for engine in engines if engine() is not None)
        return select(*arguments, **keywords)

    monkeypatch.setattr(qwen2vl_rt.session, "select_backend", select_and_look)
    with qwen2vl_rt.Session(bundle.path, max_length=256, max_pixels=112 * 112) as session:
        assert session.backend.name == "cpu"
    assert not alive


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_a_gpu_that_shares_the_systems_memory(bundle, machine, monkeypatch, backend):
    """CUDA's free memory leaves the page cache out; process and token table are in the same memory."""
    build_stand_ins(monkeypatch, bundle, LIMITS)
    monkeypatch.setattr(memory, "available_memory", lambda: 6 << 30)
    chosen = CudaBackend("asked for") if backend == "cuda" else TensorRTBackend("asked for", found(bundle))
    apart = chosen.plan(bundle, LIMITS, None)
    assert apart.limit == 8 << 30 and "process" not in apart.parts
    assert chosen.memory_in_use() == 8 << 30
    machine.free, machine.integrated = 1 << 20, True
    shared = chosen.plan(bundle, LIMITS, None)
    assert shared.limit == 6 << 30
    assert shared.total - apart.total == PROCESS_BYTES + bundle.files[EMBEDDING].size
    assert chosen.memory_in_use() == 10 << 30
    assert chosen.plan(bundle, LIMITS, 1 << 30).limit == 1 << 30


def test_an_engine_is_planned_at_no_less_than_its_file(bundle, machine, monkeypatch):
    """The full TensorRT may hold weights once a profile."""
    build_stand_ins(monkeypatch, bundle, LIMITS)
    (chosen,) = found(bundle)
    for graph, sizes in (("decoder", (5000, 1000)), ("vision", (8, None))):
        engine_bytes, weights_bytes = sizes
        figures = replace(
            chosen.descriptions[graph].figures, engine_bytes=engine_bytes, weights_bytes=weights_bytes
        )
        chosen.descriptions[graph] = replace(chosen.descriptions[graph], figures=figures)
    parts = TensorRTBackend("", [chosen]).plan(bundle, LIMITS, None).parts
    assert (parts["decoder engine"], parts["vision engine"]) == (5000, 8)
