"""What `make bench-gpu` runs on another machine: stages and their states, wheels in pieces."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import onnxruntime
import pytest

from bench import gpu_accuracy, gpu_model, gpu_operations, gpu_report
from bench.gpu_figures import Figures
from bench.gpu_report import Settings, Stage
from bench.random_bundle import write_random_bundle
from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda import executors
from qwen2vl_rt.backends.cuda.program import DeviceWeights
from qwen2vl_rt.backends.cuda.settings import CHOICES
from qwen2vl_rt.backends.tensorrt import target
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.cli.info import installed_onnxruntime
from qwen2vl_rt.plan import kv_bytes_per_token
from tests.gpu.checkpoint import small_config

ROOT = Path(__file__).parents[2]


def stage(code: str, measures: bool = True, seconds: int = 60, summaries=()) -> Stage:
    return Stage(lambda settings: [settings.python, "-c", code], seconds, measures, summaries)


def call(monkeypatch, folder: Path, stages: dict[str, Stage], *options: str) -> tuple[int, dict]:
    """The status of a call that runs these stages, and the report."""
    monkeypatch.setattr(gpu_report, "STAGES", stages)
    arguments = ["--stages", *stages, "--output", str(folder / "report"), "--work", str(folder), *options]
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *arguments])
    return gpu_report.main(), json.loads((folder / "report.json").read_text())


STAGES = {
    "passes": stage("import sys; open(sys.argv[1], 'w').write('{\"figures\": []}')"),
    "is skipped": stage("import sys; open(sys.argv[1], 'w').write('{\"skipped\": \"no use\"}')"),
    "fails": stage("raise SystemExit('broken')", measures=False),
    "fails later": stage("import sys; open(sys.argv[1], 'w').write('{\"skipped\": \"no use\"}'); exit(3)"),
}


@pytest.mark.parametrize(
    ("names", "status"), [(["passes", "is skipped"], 0), (["passes", "fails"], 1), (["fails later"], 1)]
)
def test_a_stage_that_is_skipped_is_no_failure(tmp_path, monkeypatch, names, status):
    actual, found = call(monkeypatch, tmp_path, {name: STAGES[name] for name in names})
    assert actual == status
    states = {"passes": "passed", "is skipped": "skipped", "fails": "failed", "fails later": "failed"}
    assert {name: one["state"] for name, one in found.items()} == {name: states[name] for name in names}
    report = (tmp_path / "report.md").read_text()
    assert ("| is skipped | skipped |" in report and "| no use |" in report) == ("is skipped" in names)


MEASURED = 'open(sys.argv[1], \'w\').write(\'{"figures": [{"name": "a", "value": 1, "unit": "s"}]}\')'


def test_what_a_stage_found_before_its_end_is_in_the_report(tmp_path, monkeypatch):
    code = f"import sys, time; {MEASURED}; print('half way', flush=True); time.sleep(60)"
    monkeypatch.setattr(gpu_report, "LEAST", 0)
    status, found = call(monkeypatch, tmp_path, {"slow": stage(code, seconds=2)})
    assert (status, found["slow"]["state"]) == (1, "stopped after 2 s")
    assert found["slow"]["figures"][0]["name"] == "a"
    with tarfile.open(tmp_path / "report.logs.tar.gz") as archive:
        assert archive.extractfile("slow.log").read() == b"half way\n"
        assert "slow.json" in archive.getnames()


def test_a_later_call_keeps_what_an_earlier_one_had(tmp_path, monkeypatch):
    good = {"first": stage(f"import sys; {MEASURED}")}
    assert call(monkeypatch, tmp_path, good)[0] == 0
    status, found = call(monkeypatch, tmp_path, good, "--limit", "1")
    assert (status, found["first"]["state"]) == (1, "passed")
    status, found = call(monkeypatch, tmp_path, {"first": stage("raise SystemExit(1)", measures=False)})
    assert (status, found["first"]["state"]) == (1, "failed")


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ("3 passed, 1 skipped in 0.12s\n========= ERROR SUMMARY: 0 errors", "passed"),
        ("1 failed, 3 passed in 0.12s\n========= ERROR SUMMARY: 0 errors", "failed"),
        ("3 passed, 1 error in 0.12s\n========= ERROR SUMMARY: 0 errors", "failed"),
        ("3 passed in 0.12s\n========= ERROR SUMMARY: 1 error", "failed"),
        ("3 passed in 0.12s", "failed"),
        ("24 skipped in 0.12s\n========= ERROR SUMMARY: 0 errors", "failed"),
        ("========= ERROR SUMMARY: 0 errors", "failed"),
    ],
)
def test_a_sanitizer_has_passed_when_tests_ran_and_it_found_nothing(tmp_path, monkeypatch, printed, state):
    summaries = (gpu_report.PYTEST, gpu_report.MEMCHECK)
    _, found = call(monkeypatch, tmp_path, {"memcheck": stage(f"print({printed!r})", False, 60, summaries)})
    assert found["memcheck"]["state"] == state
    for line in printed.splitlines():
        assert line.strip("= ") in found["memcheck"]["note"]


def test_a_failed_tests_name_is_in_the_report(tmp_path, monkeypatch):
    printed = (
        "FAILED tests/gpu/test_kernels.py::test_rope[cuda] - AssertionError\n1 failed, 3 passed in 0.12s"
    )
    tests = stage(f"print({printed!r}); raise SystemExit(1)", False, 60, (gpu_report.PYTEST,))
    _, found = call(monkeypatch, tmp_path, {"tests": tests})
    note = "1 failed, 3 passed in 0.12s; FAILED tests/gpu/test_kernels.py::test_rope[cuda]"
    assert (found["tests"]["state"], found["tests"]["note"]) == ("failed", note)


@pytest.mark.skipif(cuda.status().devices > 0, reason="there is a GPU")
def test_tests_fail_without_the_gpu_that_they_are_run_for(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu/test_device.py"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"QWEN2VL_REQUIRE_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "there is no GPU" in done.stdout + done.stderr


def test_the_sanitizers_look_at_every_kernel():
    tests = [
        value
        for file in (ROOT / "tests" / "gpu").glob("test_*.py")
        for name, value in vars(importlib.import_module(f"tests.gpu.{file.stem}")).items()
        if name.startswith("test_")
    ]
    marks = [
        (test, mark) for test in tests for mark in getattr(test, "pytestmark", []) if mark.name == "kernels"
    ]
    csrc = ROOT / "csrc"
    assert {file for _, mark in marks for file in mark.args} == {
        str(file.relative_to(csrc)) for file in csrc.rglob("*.cu")
    }
    for test, _ in marks:  # on the GPU
        assert "device" in inspect.signature(test).parameters


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_what_started_it(tmp_path, number):
    """And so do the processes that it has started."""
    child = "import time; time.sleep(600)"
    code = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', '{child}']);"
        f"open(r'{tmp_path}/child', 'w').write(str(p.pid)); time.sleep(600)"
    )
    report = (
        "import sys; from bench import gpu_report; from bench.gpu_report import Stage;"
        f"gpu_report.STAGES = {{'slow': Stage(lambda s: [s.python, '-c', {code!r}], 600, False)}};"
        f"sys.argv = ['', '--stages', 'slow', '--output', {str(tmp_path / 'report')!r},"
        f"'--work', {str(tmp_path)!r}]; gpu_report.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", report], cwd=ROOT)
    wait_until((tmp_path / "child").exists)
    wait_until(lambda: (tmp_path / "child").read_text() != "")
    running = Path("/proc") / (tmp_path / "child").read_text()
    assert running.exists()
    process.send_signal(number)
    process.wait(timeout=30)
    wait_until(lambda: not running.exists() or " Z " in (running / "stat").read_text())
    if number == signal.SIGTERM:
        assert json.loads((tmp_path / "report.json").read_text())["slow"]["state"] == "unfinished"


def wait_until(true) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_tensorrt_is_skipped_where_it_does_not_support_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_model, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(target, "installed_editions", list)
    settings = Settings(sys.executable, tmp_path, tmp_path, tmp_path)
    _, *command = gpu_report.STAGES["2b-bf16-tensorrt"].command(settings)
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "result.json")])
    gpu_model.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["skipped"].startswith("TensorRT is not installed")
    assert not (tmp_path / "bundles").exists()


def one_layer(folder: Path, precision: str) -> Bundle:
    """A bundle with random weights, as the stages make them, of one layer."""
    return write_random_bundle(folder, small_config(1), precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int4"])
def test_a_steps_bytes_are_those_that_the_gpu_holds(tmp_path, precision):
    bundle = one_layer(tmp_path, precision)
    dtype = executors.compute_dtype(bundle)
    weights = DeviceWeights(_core.HostDevice(), *executors.step_graph(bundle, dtype))
    past = gpu_model.PROMPT + gpu_model.ANSWER // 2
    cache = past * kv_bytes_per_token(bundle.geometry, 4 if dtype == "float32" else 2)
    held = sum(block.bytes for block in weights._blocks.values())
    assert gpu_model.step_bytes(bundle) == held + cache


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_all_kinds_of_launches_are_measured(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(gpu_operations, "WARM_SECONDS", 0)
    monkeypatch.setattr(gpu_operations, "REPLAYS", 2)
    monkeypatch.setattr(gpu_operations, "OTHER_BYTES", 1 << 20)
    bundle = one_layer(tmp_path, precision)
    operations = gpu_operations.Operations(bundle, context=64, past=48)
    gpu_operations.measure(operations, Figures(tmp_path / "result.json"), 1e9)
    figures = json.loads((tmp_path / "result.json").read_text())["figures"]
    assert all(figure["value"] > 0 for figure in figures)
    names = "\n".join(figure["name"] for figure in figures)
    kinds = ("queries, keys, values", "attention after 48", "o", "gate and up", "down", "lm_head", "program")
    for kind in kinds:
        assert f"{kind}, " in names
    # All but the norms, which the launches' inputs pass through.
    read = sum(launch.read_bytes for launch in operations.launches)
    past = gpu_model.PROMPT + gpu_model.ANSWER // 2 - 48
    norms = 3 * bundle.geometry.decoder.hidden_size * 2
    assert read == gpu_model.step_bytes(bundle) - past * kv_bytes_per_token(bundle.geometry, 2) - norms


def test_a_way_to_run_decode_that_fails_leaves_the_others(tmp_path, monkeypatch):
    load = gpu_model.Measurement.load

    def fail_once(measurement: gpu_model.Measurement, name: str) -> None:
        if "in-turn" in name:
            raise RuntimeError("broken")
        load(measurement, name)

    monkeypatch.setattr(gpu_model.Measurement, "load", fail_once)
    monkeypatch.setattr(gpu_model, "ANSWER", 4)
    for name, values in CHOICES.values():
        monkeypatch.setenv(name, values[0])  # what the ways leave there goes with the test
    output = tmp_path / "result.json"
    measurement = gpu_model.Measurement(one_layer(tmp_path / "bundle", "bf16"), {}, "cpu", output)
    with pytest.raises(SystemExit, match="in-turn"):
        measurement.variants()
    result = json.loads(output.read_text())
    assert result["failed"] == {"QWEN2VL_CUDA_STARTS=in-turn": "RuntimeError: broken"}
    ways = gpu_model.VARIANTS
    assert sum(figure["name"].startswith("decode") for figure in result["figures"]) == len(ways) - 1
    choices = dict(CHOICES.values())
    assert all(choices[name].index(value) for way in ways for name, value in way.items())


def test_a_run_that_breaks_leaves_the_accuracy_of_the_others(tmp_path, monkeypatch):
    def answers(bundle, backend, examples, progress):
        texts = {example.id: example.answer for example in examples}
        progress(texts)
        if (bundle.name, backend) == ("tiny-bf16", "cuda"):
            raise RuntimeError("broken")
        return texts

    monkeypatch.setattr(gpu_accuracy, "bundle", lambda precision, work: work / f"tiny-{precision}")
    monkeypatch.setattr(gpu_accuracy, "answers", answers)
    output = tmp_path / "result.json"
    arguments = ["--work", str(tmp_path), "--output", str(output), "--limit", "9"]
    monkeypatch.setattr(sys, "argv", ["gpu_accuracy.py", *arguments])
    assert gpu_accuracy.main() == 1
    result = json.loads(output.read_text())
    assert result["failed"] == {"tiny checkpoint, bf16, cuda": "RuntimeError: broken"}
    assert result["progress"]["tiny checkpoint, bf16, cuda"] == "9 of 9 answers, 9 equal to fp32's"
    assert [figure["value"] for figure in result["figures"]] == [100, 100, 9, 100, 9]
    # The CPU's answers are there for the next call.
    assert len(json.loads((tmp_path / gpu_accuracy.ANSWERS).read_text())) == 9


def test_the_onnx_runtime_that_is_imported_is_named():
    version, distribution = installed_onnxruntime()
    assert version == onnxruntime.__version__
    gpus = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert distribution == ("onnxruntime-gpu" if gpus else "onnxruntime")


def test_wheels_are_joined_when_all_their_pieces_are_there(tmp_path):
    whole = bytes(range(256)) * 40
    (tmp_path / "a.whl.sha256").write_text(f"{hashlib.sha256(whole).hexdigest()}  -\n")
    for piece, begin in (("ab", 4000), ("aa", 0), ("ac", 8000)):  # carried in any order
        (tmp_path / f"a.whl.part-{piece}").write_bytes(whole[begin : begin + 4000])
        joined = subprocess.run(
            ["sh", ROOT / "cmake" / "join-wheels.sh", tmp_path], capture_output=True, text=True, check=False
        )
        complete = piece == "ac"
        assert joined.returncode == (0 if complete else 1), joined.stderr
        assert ("a piece or its .sha256 is missing" in joined.stderr) != complete
        assert (tmp_path / "a.whl").exists() == complete
    assert (tmp_path / "a.whl").read_bytes() == whole
    assert not (tmp_path / "a.whl.partial").exists()
