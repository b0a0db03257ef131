"""Everything that a machine with a GPU can show, in stages, and one report of it. Needs only Python to start.

    python bench/gpu_report.py --stages build tests 2b-bf16 --output bench/results/h100

Each stage is a process of its own with a time limit; one that fails, hangs or finds no time left is recorded
and the others go on. What each gave is kept in --work, so that stages may be run in several calls: the
report, OUTPUT.json and OUTPUT.md, is of all that have run there, and is written after each. Exits with 1 when
a stage of this call neither passed nor was skipped: a stage that the GPU has no use for says so in its JSON
("skipped": why) and exits with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = re.compile(r"\d+ passed|\d+ failed|ERROR SUMMARY|RACECHECK SUMMARY|no tests ran")
# Kernels run a hundred times slower under compute-sanitizer: fewer cases, every kernel.
CASES = (
    "cuda and (rope or gather or cache or removed or patches or strided or published or overflowed "
    "or visuals_may or norm_residual or rotated_heads or attention_over)"
)
KERNEL_TESTS = [
    f"tests/gpu/test_{name}.py"
    for name in ("kernels", "device_frames", "device_sampling", "device_linear", "decode_attention")
]


@dataclass(frozen=True)
class Settings:
    """Where things are."""

    python: str
    site: Path
    """Where `build` installs."""
    wheels: Path
    work: Path


@dataclass(frozen=True)
class Stage:
    """One process. `command` gives its arguments; a stage that measures writes JSON to its last one."""

    command: Callable[[Settings], list[str]]
    seconds: int
    """Its time limit."""
    measures: bool = True


def _pytest(settings: Settings, *arguments: str) -> list[str]:
    return [settings.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def _sanitizer(tool: str) -> Stage:
    def command(settings: Settings) -> list[str]:
        test = _pytest(settings, "-k", CASES, *KERNEL_TESTS, "tests/gpu/test_device_decoder.py")
        return [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            "--target-processes",
            "all",
            *test,
        ]

    return Stage(command, 540, measures=False)


def _script(name: str, *arguments: str, seconds: int = 300, bundles: bool = True) -> Stage:
    def command(settings: Settings) -> list[str]:
        work = ["--work", str(settings.work / "bundles")] if bundles else []
        return [settings.python, f"bench/{name}.py", *arguments, *work, "--output"]

    return Stage(command, seconds)


def _model(size: str, precision: str, *more: str, seconds: int = 300) -> Stage:
    def command(settings: Settings) -> list[str]:
        limits = ["--limits", str(settings.work / "limits.result.json")]
        return _script("gpu", "model", size, precision, *more, *limits).command(settings)

    return Stage(command, seconds)


STAGES = {
    "build": Stage(lambda s: ["cmake/gpu-env.sh", s.python, str(s.site), str(s.wheels)], 540, measures=False),
    "tests": Stage(lambda s: _pytest(s, "tests/gpu"), 540, measures=False),
    "memcheck": _sanitizer("memcheck"),
    "racecheck": _sanitizer("racecheck"),
    "accuracy": _script("gpu_accuracy", seconds=540),
    "limits": _script("gpu", "limits", seconds=120, bundles=False),
    "2b-bf16": _model("2b", "bf16"),
    "2b-int4": _model("2b", "int4"),
    "2b-bf16-tensorrt": _model("2b", "bf16", "--backend", "tensorrt", seconds=540),
    "2b-int4-tensorrt": _model("2b", "int4", "--backend", "tensorrt", seconds=540),
    "2b-bf16-lengths": _model("2b", "bf16", "--backend", "tensorrt", "--attention", "lengths", seconds=540),
    "peer-2b": _script("gpu_peer", "2b", bundles=False),
    "2b-variants": _model("2b", "bf16", "--variants"),
    "2b-int4-variants": _model("2b", "int4", "--variants"),
    "7b-bf16": _model("7b", "bf16"),
    "7b-int4": _model("7b", "int4"),
    "peer-7b": _script("gpu_peer", "7b", bundles=False),
    "72b-int4": _model("72b", "int4", seconds=540),
}


def run(name: str, settings: Settings, seconds: float) -> dict[str, Any]:
    """Run a stage for at most `seconds`; its state, duration, last line of interest, and what it measured."""
    stage, log = STAGES[name], settings.work / f"{name}.log"
    result_file = settings.work / f"{name}.result.json"
    result_file.unlink(missing_ok=True)
    command = stage.command(settings) + ([str(result_file)] if stage.measures else [])
    environment = os.environ | {"PYTHONPATH": f"{settings.site}:{ROOT}", "PYTHONUNBUFFERED": "1"}
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"  # nvcc, compute-sanitizer
    environment["PATH"] = f"{os.environ['PATH']}:{toolkit}"
    started, state = time.monotonic(), "passed"
    with open(log, "w") as stream:
        try:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return {"state": "failed", "seconds": 0.0, "note": f"{command[0]}: {error.strerror}"}
        try:
            code = process.wait(timeout=seconds)
            if code != 0:
                state = "failed"
        except subprocess.TimeoutExpired:
            state = f"stopped after {seconds:.0f} s"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    result["note"] = _note(log.read_text(errors="replace"), state == "passed")
    with contextlib.suppress(OSError, ValueError):
        measured = json.loads(result_file.read_text())
        if state == "passed" and (reason := measured.pop("skipped", "")):
            measured |= {"state": "skipped", "note": reason}
        result |= measured
    return result


def _note(text: str, passed: bool) -> str:
    """What the log's summary says; of a failure, its last lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    summary = [line.strip("= ") for line in lines if SUMMARY.search(line)]
    if summary:
        return summary[-1]
    return "" if passed else " / ".join(lines[-3:])[-400:]


def write_report(settings: Settings, output: Path) -> None:
    """Gather what has been found so far."""
    found = {}
    for name in STAGES:
        with contextlib.suppress(OSError, ValueError):
            found[name] = json.loads((settings.work / f"{name}.json").read_text())
    output.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps(found, indent=2) + "\n")
    Path(f"{output}.md").write_text(markdown(found))


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The report for people."""
    about = found.get("limits", {})
    machine, limits = about.get("machine", {}), about.get("limits", {})
    lines = [f"# {machine.get('gpu', 'GPU report')}", ""]
    if machine:
        rate = limits.get("matrix_flops")
        lines += [
            f"Driver {machine['driver']}, CUDA {machine['toolkit']}, "
            f"ONNX Runtime {machine['onnxruntime-gpu']}, "
            f"PyTorch {machine['torch']}, transformers {machine['transformers']}. A copy moves "
            f"{limits['copy_bytes_per_second'] / 1e9:.0f} GB/s (read and written); "
            "bfloat16 products run at "
            f"{f'{rate / 1e12:.0f} TFLOP/s' if rate else 'an unmeasured rate'}. Medians; bounds are what "
            "these two limits allow. Random weights but for the tiny checkpoint.",
            "",
        ]
    lines += ["| stage | | seconds | |", "|---|---|---:|---|"]
    for name in STAGES:
        stage = found.get(name, {"state": "not run", "seconds": "", "note": ""})
        note = stage["note"].replace("|", "\\\\|")
        lines.append(f"| {name} | {stage['state']} | {stage['seconds']} | {note} |")
    lines += ["", "| | | median | bound | share |", "|---|---|---:|---:|---:|"]
    for name, stage in found.items():
        for figure in stage.get("figures", []):
            bound, share = figure.get("bound"), figure.get("share")
            cells = [name, figure["name"], f"{figure['value']:.4g} {figure['unit']}"]
            cells += ["" if bound is None else f"{bound:.3g} {figure['unit']}"]
            cells += ["" if share is None else f"{share:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
    for size in ("2b", "7b"):
        ours, peer = (_decode(found.get(name, {})) for name in (f"{size}-bf16", f"peer-{size}"))
        if ours and peer:
            lines += [
                "",
                f"Decode of {size} in bf16: {ours / peer:.2f} times transformers with torch.compile.",
            ]
    return "\n".join(lines) + "\n"


def _decode(stage: dict[str, Any]) -> float | None:
    return next((f["value"] for f in stage.get("figures", []) if f["name"].startswith("decode")), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--output", type=Path, required=True, help="without suffix")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--site", type=Path, default=ROOT / "out" / "gpu-site")
    parser.add_argument("--wheels", type=Path, default=Path("wheels"))
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "gpu-report")
    parser.add_argument("--limit", type=float, default=0, metavar="SECONDS", help="for all stages; 0: none")
    options = parser.parse_args()
    settings = Settings(options.python, options.site, options.wheels, options.work.absolute())
    settings.work.mkdir(parents=True, exist_ok=True)
    ends, failed = time.monotonic() + (options.limit or 1e9), False
    for name in options.stages:
        seconds = min(STAGES[name].seconds, ends - time.monotonic())
        if seconds < 10:
            result = {"state": "not run", "seconds": 0.0, "note": "no time was left in this call"}
        else:
            result = run(name, settings, seconds)
        failed |= result["state"] not in ("passed", "skipped")
        print(f"{name}: {result['state']} in {result['seconds']} s. {result['note']}", flush=True)
        (settings.work / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        write_report(settings, options.output)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
