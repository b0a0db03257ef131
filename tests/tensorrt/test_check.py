"""The self-check: engines that are right, that are wrong in one place, and with a form to go back to."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.backends.cpu import plan as cpu_plan
from qwen2vl_rt.backends.tensorrt import check, check_files, check_memory, load
from qwen2vl_rt.backends.tensorrt.check import (
    ALLOWED,
    ALLOWED_FP8,
    ALLOWED_INT8,
    checked,
    error,
    expected_for,
    run_check,
)
from qwen2vl_rt.backends.tensorrt.check_files import CheckResult, store_result, stored_result
from qwen2vl_rt.backends.tensorrt.check_inputs import (
    BATCH,
    BATCH_REPLAY,
    CHUNK,
    DECODE,
    LARGEST,
    PREFILL,
    REPLAY,
    VISION,
    check_steps,
    picture_sizes,
)
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.cli import main
from qwen2vl_rt.errors import BackendError, EngineRefusedError, MemoryLimitError
from qwen2vl_rt.session_limits import SessionLimits
from tests.support.random_model import random_model, save_checkpoint
from tests.support.tensorrt_stand_in import build_stand_ins, found, open_stand_ins

LIMITS = SessionLimits(max_length=96, max_batch=3, max_pixels=28 * 28 * 64, prefill_chunk=40)
GPU = "a GPU, CUDA driver 13000"
COMPARED = [VISION, PREFILL, CHUNK, DECODE, REPLAY, BATCH, BATCH_REPLAY]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("check")
    model = random_model(7, tied=True, hidden_size=128, heads=4, mlp_size=128, mrope_section=(4, 6, 6))
    checkpoint = save_checkpoint(model, folder / "checkpoint")
    return {kind: export_checkpoint(checkpoint, folder / kind, kind) for kind in ("fp32", "fp16")}


@pytest.fixture
def engines_of(tmp_path, monkeypatch):
    """Stand-ins of a bundle in one form, as a session finds them."""

    def make(bundle: Bundle, attention: str, limits: SessionLimits = LIMITS):
        build_stand_ins(monkeypatch, bundle, limits, tmp_path, attention)
        return found(bundle, tmp_path)

    return make


def result_of(bundle, chosen, **faults) -> CheckResult:
    engines = open_stand_ins(bundle, chosen, **faults)
    return run_check(bundle, chosen, engines, GPU, expected_for(bundle, chosen, 2))


@pytest.mark.parametrize("attention", ["lengths", "mask", "primitives"])
def test_a_right_engine_passes(exported, engines_of, attention):
    (chosen,) = engines_of(exported["fp32"], attention)
    result = result_of(exported["fp32"], chosen)
    assert result.passed and list(result.figures) == [LARGEST, *COMPARED]
    assert max(result.figures.values()) < 1e-4


def test_float16_is_within_its_rounding(exported, engines_of):
    (chosen,) = engines_of(exported["fp16"], "mask")
    result = result_of(exported["fp16"], chosen)
    assert result.passed and result.allowed == ALLOWED["float16"]
    assert 1e-4 < max(result.figures.values()) < 0.5 * ALLOWED["float16"]


# What each wrong engine gets wrong, and nothing else. The CPU as a device replays nothing: see
# tests/gpu/test_tensorrt_recorded.py.
FAULTS = {
    VISION: {"spoil_vision": True},
    PREFILL: {
        "misread": lambda profile, shape, past: past + 1 if profile == "prefill" and past[0] == 0 else None
    },
    CHUNK: {
        "misread": lambda profile, shape, past: past - 1 if profile == "prefill" and past[0] > 0 else None
    },
    DECODE: {
        "misread": lambda profile, shape, past: past + 1 if profile == "decode" and len(past) == 1 else None
    },
    BATCH: {"misread": lambda profile, shape, past: past * 0 + past.max() if len(past) > 1 else None},
}


@pytest.mark.parametrize("attention", ["lengths", "mask", "primitives"])
@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_in_one_place_is_found_there(exported, engines_of, name, attention):
    """And by more than any number format's rounding would explain."""
    (chosen,) = engines_of(exported["fp32"], attention)
    result = result_of(exported["fp32"], chosen, **FAULTS[name])
    assert list(result.differing) == {DECODE: [DECODE, REPLAY], BATCH: [BATCH, BATCH_REPLAY]}.get(
        name, [name]
    )
    assert result.figures[name] > max(*ALLOWED.values(), ALLOWED_INT8, ALLOWED_FP8)
    message = str(check.refusal(chosen, result))
    assert name in message and GPU in message and str(chosen.files["decoder"].path) in message


def test_a_largest_picture_that_overflows_is_found(exported, engines_of):
    """At a size that nothing is compared at."""
    limits = replace(LIMITS, max_pixels=28 * 28 * 300)
    (chosen,) = engines_of(exported["fp32"], "mask", limits)
    result = result_of(exported["fp32"], chosen, overflow_above=1024)
    assert list(result.differing) == [LARGEST]
    assert result_of(exported["fp32"], chosen, overflow_above=1200).passed


def test_a_forgotten_position_is_found(exported, engines_of):
    """The batch has a row of one token: a step that forgets it sees nothing but itself."""
    (chosen,) = engines_of(exported["fp32"], "mask")
    faults = {"misread": lambda profile, shape, past: np.maximum(past - 1, 0) if len(past) > 1 else None}
    assert list(result_of(exported["fp32"], chosen, **faults).differing) == [BATCH, BATCH_REPLAY]


def test_alignment_as_the_parser_leaves_it_is_found(exported, engines_of):
    (chosen,) = engines_of(exported["fp32"], "lengths")
    result = result_of(exported["fp32"], chosen, upper_left=True)
    assert {CHUNK, DECODE, BATCH} <= set(result.differing)


def rebuilding(bundle, **faults):
    """What `checked` is given: opens and builds stand-ins, and notes the order."""
    calls = []

    def open_engines(chosen):
        calls.append(("open", chosen.attention))
        return open_stand_ins(bundle, chosen, **faults)

    build = load.build_masked(bundle)

    def build_masked(chosen):
        calls.append(("build", chosen.attention))
        return build(chosen)

    return calls, open_engines, build_masked


def test_the_mask_takes_over_where_only_it_is_right(exported, engines_of, tmp_path):
    """Built where it is missing; what was found lies beside both engines, and is not found out again."""
    bundle = exported["fp32"]
    candidates = engines_of(bundle, "lengths")
    calls, *functions = rebuilding(bundle, upper_left=True)
    chosen, engines = checked(bundle, candidates, GPU, *functions, threads=2)
    assert chosen.attention == "mask" and engines.answer.description.key.form.attention == "mask"
    assert calls == [("open", "lengths"), ("build", "lengths"), ("open", "mask")]
    assert chosen.files["vision"] == candidates[0].files["vision"]
    reports = {
        json.loads(path.read_text())["figures"][DECODE] > 0.5 for path in tmp_path.glob("*.check.json")
    }
    assert reports == {True, False}
    assert len(list(tmp_path.glob("expected.*.npz"))) == 1

    calls.clear()
    again, _ = checked(bundle, found(bundle, tmp_path), GPU, *functions, threads=2)
    assert again.attention == "mask" and calls == [("open", "mask")]
    calls.clear()  # another GPU is another matter
    checked(bundle, found(bundle, tmp_path), "another GPU", *functions, threads=2)
    assert calls == [("open", "mask")]


def test_an_engine_that_is_wrong_in_every_form_is_refused(exported, engines_of, tmp_path):
    bundle = exported["fp32"]
    candidates = engines_of(bundle, "lengths")
    calls, *functions = rebuilding(bundle, **FAULTS[DECODE])
    for first in ("lengths", "mask"):
        with pytest.raises(EngineRefusedError, match=f"'{first}'.*Off from the cpu backend: decode against"):
            checked(bundle, candidates, GPU, *functions, threads=2)
        candidates = found(bundle, tmp_path)
    assert calls == [("open", "lengths"), ("build", "lengths"), ("open", "mask")]


def test_expected_values_travel(exported, engines_of, tmp_path, monkeypatch):
    """Computed once; a machine without ONNX Runtime reads them, and says so where there are none."""
    bundle = exported["fp32"]
    (chosen,) = engines_of(bundle, "mask")
    first = expected_for(bundle, chosen, 2)

    def not_installed(*_):
        raise ImportError("no module")

    monkeypatch.setattr(check_files, "expected_values", not_installed)
    second = expected_for(bundle, chosen)
    assert list(first) == list(second) == COMPARED
    for name in first:
        for one, other in zip(first[name], second[name], strict=True):
            np.testing.assert_array_equal(one, other)
    (file,) = tmp_path.glob("expected.*.npz")
    whole = file.read_bytes()
    for damaged in (b"cut off", whole[: len(whole) // 2], whole[:2000] + b"x" * 100 + whole[2100:]):
        file.write_bytes(damaged)
        with pytest.raises(
            BackendError, match="qwen2vl build BUNDLE --gpu sm89 --arithmetic fp32 --expected"
        ):
            expected_for(bundle, chosen)


def test_expected_values_that_do_not_fit(exported, engines_of, tmp_path, monkeypatch, capsys):
    """Refused before the model is loaded, with the way out; the vision tower and the decoder take turns."""
    bundle = exported["fp32"]
    (chosen,) = engines_of(bundle, "mask")
    monkeypatch.setattr(check_files, "expected_values", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(cpu_plan, "available_memory", lambda: 100 << 20)
    with pytest.raises(BackendError, match=r"GiB too little: .*`qwen2vl build BUNDLE --gpu sm89 --arith"):
        expected_for(bundle, chosen)
    assert main(["build", str(bundle.path), "--gpu", "sm87", "--expected", "--output", str(tmp_path)]) == 1
    assert "0.10 GiB of memory is available" in capsys.readouterr().err

    whole = cpu_plan.plan_cpu(bundle, LIMITS)
    parts = {
        "process": 160 << 20,
        "vision weights": 30 << 20,
        "vision": 10 << 20,
        "decoder weights": 50 << 20,
    }
    monkeypatch.setattr(check_memory, "plan_cpu", lambda *_: replace(whole, parts=parts, limit=210 << 20))
    check_memory.require_memory(bundle, LIMITS)
    parts["decoder weights"] += 1
    with pytest.raises(MemoryLimitError, match=r"take 0\.21 GiB"):
        check_memory.require_memory(bundle, LIMITS)


def test_expected_values_without_tensorrt(exported, engines_of, tmp_path, monkeypatch, capsys):
    """`qwen2vl build --expected` on another machine computes what these engines are compared with, and says
    where that is.
    """
    bundle = exported["fp32"]
    options = ["--max-length", "96", "--max-batch", "3", "--max-pixels", str(28 * 28 * 64)]
    options += ["--prefill-chunk", "40", "--arithmetic", "fp32", "--output", str(tmp_path)]
    arguments = ["build", str(bundle.path), "--gpu", "sm87", "--expected", *options]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (file,) = tmp_path.glob("expected.*.npz")
    assert (report["expected"], report["target"], report["arithmetic"]) == (str(file), "sm87", "fp32")
    assert list(report["values"]) == COMPARED and report["values"][VISION] == 3
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{file}\n") and f"3 of {VISION}" in printed and "compute in fp32" in printed
    assert main([*arguments[:-1], str(file)]) == 1  # a file is no folder
    assert "name another --output" in capsys.readouterr().err
    assert main([*arguments, "--max-length", "1"]) == 1
    assert "max_length is 1: give 2 or more" in capsys.readouterr().err
    (chosen,) = engines_of(bundle, "lengths")
    monkeypatch.setattr(check_files, "expected_values", lambda *_: pytest.fail("computed again"))
    assert list(expected_for(bundle, chosen)) == COMPARED


def test_results_beside_the_engine(exported, engines_of):
    (chosen,) = engines_of(exported["fp32"], "mask")
    assert stored_result(chosen, GPU) is None
    names = [chosen.files[graph].path.name for graph in ("decoder", "vision")]
    result = CheckResult(GPU, names, 0.1, {DECODE: float("inf"), PREFILL: 0.05})
    store_result(chosen, result)
    assert stored_result(chosen, GPU) == result
    assert result.differing == {DECODE: float("inf")}
    assert stored_result(chosen, "another GPU") is None
    chosen.files["decoder"].path.with_suffix(".check.json").write_text('{"figures": 1}')
    assert stored_result(chosen, GPU) is None


def test_errors_are_of_deviations():
    expected = np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 8.0]])
    assert error(expected + 100, expected) < 1e-12
    assert error(expected * [[1.0], [1.5]], expected) == pytest.approx(0.5)
    assert error(np.full((2, 3), np.nan), expected) == float("inf")


@pytest.mark.parametrize(
    "limits",
    [
        SessionLimits(8, 1, 28 * 28, 2),
        SessionLimits(5, 2, 28 * 28, 2),
        SessionLimits(8192, 8, 1 << 24, 512),
        SessionLimits(40, 2, 28 * 56, 512),
    ],
)
def test_steps_fit_what_engines_hold(limits):
    steps = check_steps(limits)
    assert [step.name for step in steps[:4]] == [PREFILL, CHUNK, DECODE, REPLAY]
    assert (BATCH in {step.name for step in steps}) == (limits.max_batch > 1)
    for before, step, after in zip(steps, steps[1:], steps[2:], strict=False):
        if step.name == CHUNK:
            assert step.past == (before.tokens,) and after.past == (before.tokens + step.tokens,)
    for before, step in itertools.pairwise(steps):
        assert not step.replayed or step.past == tuple(past + 1 for past in before.past)
    for step in steps:
        assert max(step.past) + step.tokens <= limits.max_length
        assert step.tokens <= (limits.prefill_chunk if step.prompt else 1)
        assert step.first_row + step.rows <= limits.max_batch


def test_steps_and_pictures_are_as_large_as_engines_are_tuned_for():
    steps = check_steps(SessionLimits(4096, 2, 1 << 24, 512))
    assert max(step.tokens for step in steps if step.prompt) == 512
    assert max(step.past[0] for step in steps) == 512 + 41 + 2
    assert (1, 32, 32) in picture_sizes(SessionLimits(4096, 1, 1 << 24, 512), 14, 2)


@pytest.mark.parametrize("merged", [1, 2, 5, 54, 64, 4096])
def test_pictures_fit_what_engines_hold(merged):
    sizes = picture_sizes(SessionLimits(4096, 1, merged * 28 * 28, 512), 14, 2)
    assert all(high % 2 == wide % 2 == 0 for _, high, wide in sizes)
    assert max(high * wide for _, high, wide in sizes) <= 4 * merged
    assert len(set(sizes)) == len(sizes)
