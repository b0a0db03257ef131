"""Everything that a machine with a GPU can show, in stages, and one report of it. Needs only Python to start.

    python bench/gpu_report.py --stages build tests 2b-bf16 --output bench/results/h100

Each stage is a process of its own with a time limit; one that fails, hangs or finds no time left is recorded
and the others go on. What each gave is kept in --work, so that stages may be run in several calls: the
report, OUTPUT.json and OUTPUT.md, is of all that have run there, and OUTPUT.logs.tar.gz holds what they
printed. All three are written again while a stage runs and after it, so that whatever ends this process
leaves what was found until then; it ends the stage, too. Exits with 1 when a stage of this call neither
passed nor was skipped: a stage that the GPU has no use for says so in its JSON ("skipped": why) and exits
with 0.
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
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN, UNFINISHED = "not run", "unfinished"  # states beside passed, skipped, failed, stopped after N s
LEAST = 10.0  # seconds that a stage is started with
REFRESH = 10.0  # seconds between two reports while a stage runs
# Runs a stage. Its process group ends with this process, whatever ends it: one of the group waits for the end
# of a pipe that only this process holds open.
LEASH = 'exec 3<&0 </dev/null; (cat <&3; kill -9 0) & exec "$@" 3<&-'
# Summaries of a tool's log, and what one of a stage that passed looks like.
PYTEST = (
    r"\b(passed|failed|errors?|no tests ran|skipped|deselected)\b.* in [\d.]+s",
    r"^\d+ passed\b(?!.*\b(failed|errors?)\b)",
)
MEMCHECK = (r"ERROR SUMMARY: ", r"ERROR SUMMARY: 0 errors")
RACECHECK = (r"RACECHECK SUMMARY: ", r"RACECHECK SUMMARY: 0 hazards")
FAILED_TEST = re.compile(r"^(?:FAILED tests/\S+|ERROR:? .{,200})", re.MULTILINE)
# Kernels run a hundred times slower under compute-sanitizer: the cases that are marked as some kernel's.
KERNEL_CASES = "kernels and gpu"


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
    summaries: tuple[tuple[str, str], ...] = ()
    """Of the tools that it runs. It has passed when each printed one, and all look as they should: a tool
    that started nothing, or swallows an exit status, must not pass."""


def _pytest(settings: Settings, *arguments: str) -> list[str]:
    # -v and the time-out: of a run that is cut off or hangs, the log says where it was.
    options = ["-v", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=120"]
    return [settings.python, "-m", "pytest", *options, *arguments]


def _sanitizer(tool: str, summary: tuple[str, str], *options: str) -> Stage:
    def command(settings: Settings) -> list[str]:
        checked = ["compute-sanitizer", "--tool", tool, *options]
        checked += ["--error-exitcode", "9", "--target-processes", "all"]
        return checked + _pytest(settings, "-m", KERNEL_CASES, "tests/gpu")

    return Stage(command, 540, measures=False, summaries=(PYTEST, summary))


def _script(name: str, *arguments: str, seconds: int = 300, bundles: bool = True) -> Stage:
    def command(settings: Settings) -> list[str]:
        work = ["--work", str(settings.work / "bundles")] if bundles else []
        return [settings.python, f"bench/{name}.py", *arguments, *work, "--output"]

    return Stage(command, seconds)


def _bounded(name: str, *arguments: str, seconds: int = 300) -> Stage:
    """A script that is told what `limits` found."""

    def command(settings: Settings) -> list[str]:
        limits = ["--limits", str(settings.work / "limits.json")]
        return _script(name, *arguments, *limits).command(settings)

    return Stage(command, seconds)


def _model(size: str, precision: str, *more: str, seconds: int = 300) -> Stage:
    return _bounded("gpu_model", size, precision, *more, seconds=seconds)


# In the report's order.
STAGES = {
    "build": Stage(lambda s: ["cmake/gpu-env.sh", s.python, str(s.site), str(s.wheels)], 540, measures=False),
    "tests": Stage(lambda s: _pytest(s, "tests/gpu"), 540, measures=False, summaries=(PYTEST,)),
    # A CUDA call that returns an error is no wrong access: cuBLAS probes, tests ask for more memory than
    # there is, and the project's own calls are checked one by one.
    "memcheck": _sanitizer("memcheck", MEMCHECK, "--report-api-errors", "no"),
    "racecheck": _sanitizer("racecheck", RACECHECK),
    "accuracy": _script("gpu_accuracy", seconds=540),
    "limits": _script("gpu_limits", seconds=120, bundles=False),
    "2b-bf16": _model("2b", "bf16"),
    "2b-int4": _model("2b", "int4"),
    "2b-operations": _bounded("gpu_operations", "2b", "bf16"),
    "2b-int4-operations": _bounded("gpu_operations", "2b", "int4"),
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


def run(
    name: str, settings: Settings, seconds: float, progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a stage for at most `seconds`; its state, duration, lines of interest, and what it measured.

    `progress` is called with the same every REFRESH seconds, and when something ends this process.
    """
    stage, log = STAGES[name], settings.work / f"{name}.log"
    result_file = settings.work / f"{name}.result.json"
    result_file.unlink(missing_ok=True)
    command = stage.command(settings) + ([str(result_file)] if stage.measures else [])
    environment = os.environ | {
        "PYTHONPATH": f"{settings.site}:{ROOT}",
        "PYTHONUNBUFFERED": "1",
        "QWEN2VL_REQUIRE_GPU": "1",
    }
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"  # nvcc, compute-sanitizer
    environment["PATH"] = f"{os.environ['PATH']}:{toolkit}"
    started, state = time.monotonic(), UNFINISHED

    def found() -> dict[str, Any]:
        result = {"state": state, "seconds": round(time.monotonic() - started, 1)}
        result |= _read(result_file)
        text = log.read_text(errors="replace")
        if state == "passed" and "skipped" in result:
            return result | {"state": "skipped", "note": result.pop("skipped")}
        result.pop("skipped", None)
        result["note"], good = _note(text, stage.summaries)
        if state == "passed" and not good:
            result["state"] = "failed"
        if result["state"] not in ("passed", UNFINISHED) and not result["note"]:
            result["note"] = " / ".join(text.strip().splitlines()[-3:])[-400:]
        return result

    with open(log, "w") as stream:
        process = subprocess.Popen(
            ["sh", "-c", LEASH, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            preexec_fn=os.setpgrp,
        )
    try:
        while state == UNFINISHED:
            left = seconds - (time.monotonic() - started)
            try:
                code = process.wait(timeout=max(0.0, min(left, REFRESH)))
                state = "passed" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                if left <= 0:
                    state = f"stopped after {seconds:.0f} s"
                else:
                    progress(found())
    except BaseException:  # a signal
        progress(found())
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
    return found()


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none, or half of one."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text())
    return {}


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


def _note(text: str, summaries: tuple[tuple[str, str], ...]) -> tuple[str, bool]:
    """Each tool's last summary and pytest's first failures; whether all summaries are there and good."""
    lines = [line.strip("= ") for line in text.splitlines()]
    notes, good = [], True
    for mark, passed in summaries:
        found = [line for line in lines if re.search(mark, line)]
        notes += found[-1:]
        good &= bool(found) and all(re.search(passed, line) for line in found)
    notes += FAILED_TEST.findall(text)[:3]
    return "; ".join(notes), good


def keep(name: str, result: dict[str, Any], work: Path) -> None:
    """Write down what a stage gave, unless time cut it off and an earlier call had more of it."""
    file = work / f"{name}.json"
    earlier = _read(file)
    if result["state"] == NOT_RUN and earlier:
        return
    cut_off = result["state"] == UNFINISHED or result["state"].startswith("stopped")
    if not (cut_off and earlier.get("state") in ("passed", "skipped")):
        _write(file, json.dumps(result, indent=2) + "\n")


def write_report(work: Path, output: Path) -> None:
    """Gather what has been found so far."""
    found = {name: result for name in STAGES if (result := _read(work / f"{name}.json"))}
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(Path(f"{output}.json"), json.dumps(found, indent=2) + "\n")
    _write(Path(f"{output}.md"), markdown(found))
    logs = Path(f"{output}.logs.tar.gz")
    partial = logs.with_name(f"{logs.name}.partial")
    with tarfile.open(partial, "w:gz") as archive:
        for file in sorted([*work.glob("*.log"), *work.glob("*.json")]):
            archive.add(file, file.name)
    partial.replace(logs)


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The report for people."""
    about = found.get("limits", {})
    machine, limits = about.get("machine", {}), about.get("limits", {})
    lines = [f"# {machine.get('gpu', 'GPU report')}", ""]
    if machine:
        rate = limits.get("matrix_flops")
        lines += [
            f"Driver {machine['driver']}, CUDA {machine['toolkit']}, "
            f"ONNX Runtime {machine['onnxruntime']}, "
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
        note = stage["note"].replace("|", "\\|")
        lines.append(f"| {name} | {stage['state']} | {stage['seconds']} | {note} |")
    lines += ["", "| | | median | bound | share |", "|---|---|---:|---:|---:|"]
    for name, stage in found.items():
        for figure in stage.get("figures", []):
            bound, share = figure.get("bound"), figure.get("share")
            cells = [name, figure["name"], f"{figure['value']:.4g} {figure['unit']}"]
            cells += ["" if bound is None else f"{bound:.3g} {figure['unit']}"]
            cells += ["" if share is None else f"{share:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
        for what, error in stage.get("failed", {}).items():
            lines.append(
                "| " + " | ".join((name, what, f"failed: {error}".replace("|", "\\|"), "", "")) + " |"
            )
    for size in ("2b", "7b"):
        ours, peer = (_decode(found.get(name, {})) for name in (f"{size}-bf16", f"peer-{size}"))
        if ours and peer:
            lines += [
                "",
                f"Decode of {size} in bf16: {ours / peer:.2f} times transformers generate() with a static "
                "cache and torch.compile.",
            ]
    for model, name in (("2b-bf16", "2b-operations"), ("2b-int4", "2b-int4-operations")):
        rate = _decode(found.get(model, {}))
        program = _figure(found.get(name, {}), "program")
        if rate and program:
            lines += [
                "",
                f"A step of {model} takes {1e6 / rate:.0f} us, of which its program is {program:.0f} us: the "
                "rest is embedding, tables, sampling, and the gaps between.",
            ]
    return "\n".join(lines) + "\n"


def _decode(stage: dict[str, Any]) -> float | None:
    return _figure(stage, "decode")


def _figure(stage: dict[str, Any], begins: str) -> float | None:
    return next((f["value"] for f in stage.get("figures", []) if f["name"].startswith(begins)), None)


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
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    ends, failed = time.monotonic() + (options.limit or 1e9), False
    for name in options.stages:

        def progress(result: dict[str, Any], name: str = name) -> None:
            keep(name, result, settings.work)
            write_report(settings.work, options.output)

        seconds = min(STAGES[name].seconds, ends - time.monotonic())
        if seconds < LEAST:
            result = {"state": NOT_RUN, "seconds": 0.0, "note": "no time was left in this call"}
        else:
            result = run(name, settings, seconds, progress)
        failed |= result["state"] not in ("passed", "skipped")
        print(f"{name}: {result['state']} in {result['seconds']} s. {result['note']}", flush=True)
        progress(result)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
