"""Measure the cuda backend: `make bench-gpu`. Writes one JSON and one markdown report.

    python bench/gpu.py --sizes 2b 7b --precisions bf16 int4 --output bench/results/NAME

Bundles of the published shapes with random weights are made first (bench/random_checkpoint.py, then the
exporter), in --work, and kept there. The limits beside the figures are measured in the same run: a device's
own copy counts bytes read and written; the matrix rate is that of PyTorch's bfloat16 product of 8192^3 random
numbers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.random_checkpoint import published_config, write_random_checkpoint
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import cuda
from qwen2vl_rt.benchmark import decoder_parameters, random_tokens, random_visual, vision_flops
from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, Bundle
from qwen2vl_rt.engine import Engine
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.plan import plan_memory, session_limits
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
REPEATS = 5
PROMPT, ANSWER = 512, 128  # tokens


@dataclass
class Figure:
    """One median, and the bound that the machine's limits set it, in the same unit."""

    name: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def share(self) -> float | None:
        """Of the bound reached: bound over value for times, value over bound for rates."""
        if self.bound is None:
            return None
        return self.bound / self.value if self.unit in ("s", "ms") else self.value / self.bound


def copy_bandwidth() -> float:
    """Bytes a second that a device-to-device copy of 1 GiB reads and writes."""
    module = cuda.load()
    stream, size = module.Stream(), 1 << 30
    buffers = [module.DeviceBuffer(size) for _ in range(2)]
    start, end = module.Event(timing=True), module.Event(timing=True)
    seconds = []
    for _ in range(10):
        start.record(stream)
        module.copy_on_device(buffers[1].pointer, buffers[0].pointer, size, stream)
        end.record(stream)
        end.synchronize()
        seconds.append(end.milliseconds_since(start) / 1e3)
    return 2 * size / statistics.median(seconds[2:])


def matrix_rate() -> float | None:
    """bfloat16 FLOP/s of PyTorch's matrix product on random numbers; None without PyTorch for this GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    del a, b
    torch.cuda.empty_cache()
    return 2 * 8192**3 / statistics.median(seconds[2:])


def machine() -> dict[str, object]:
    """What ran: GPU, driver, versions."""
    info = cuda.load().device_info()
    versions = {}
    for package in ("qwen2vl_rt", "onnxruntime-gpu", "torch", "transformers", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    return {
        "gpu": info.name,
        "compute_capability": info.compute_capability / 10,
        "memory_bytes": info.total_bytes,
        "driver": driver,
        "cuda_driver": info.driver_version,
        "toolkit": cuda.status().toolkit,
        "python": platform.python_version(),
        **versions,
    }


def random_bundle(size: str, precision: str, work: Path) -> Bundle:
    """The bundle of a published size with random weights, made once."""
    folder = work / f"{size}-{precision}"
    if not (folder / "manifest.json").exists():
        checkpoint = work / f"{size}-checkpoint"
        if not (checkpoint / "model.safetensors.index.json").exists():
            write_random_checkpoint(checkpoint, published_config(size), TINY)
        export_checkpoint(checkpoint, folder, precision)
    return Bundle.open(folder)


def measure(bundle: Bundle, bandwidth: float, flops: float | None, max_length: int = 4096) -> list[Figure]:
    """Load one bundle and measure it."""
    geometry = bundle.geometry
    figures: list[Figure] = []

    def add(name: str, value: float, unit: str, bound: float | None = None) -> None:
        figures.append(Figure(name, value, unit, bound))
        print(f"  {name}: {value:.4g} {unit}", flush=True)

    limits = session_limits(bundle, max_length=max_length, max_pixels=1008 * 1008)
    before = cuda.load().device_info().free_bytes
    started = time.perf_counter()
    processor = Processor(bundle.path, geometry)
    engine = Engine(bundle, limits, processor.tokenizer, 0, "cuda")
    add("load", time.perf_counter() - started, "s")

    rng = np.random.default_rng(0)
    for side in (448, 1008):
        visual = random_visual(geometry, side, side, rng)
        bound = vision_flops(geometry, visual.grid_thw) / flops if flops else None
        add(f"vision {side}x{side}", _median(lambda visual=visual: engine.encode([visual])), "s", bound)

    step_bytes = bundle.files[DECODER_WEIGHTS].size
    if geometry.decoder.tied_embedding:
        step_bytes += bundle.files[EMBEDDING].size
    options = GenerationOptions(max_new_tokens=ANSWER, ignore_eos=True)
    prefill, decode = [], []
    for repeat in range(
        REPEATS + 1
    ):  # other tokens each time, or the cache would know them; the first warms up
        prompt = PreparedPrompt(random_tokens(geometry, PROMPT, rng), [], "")
        (result,), _ = engine.generate([prompt], [options])
        if repeat:
            prefill.append(result.prefill_seconds)
            decode.append((len(result.token_ids) - 1) / result.decode_seconds)
    prompt_flops = 2 * decoder_parameters(geometry) * PROMPT
    add(f"prefill of {PROMPT}", statistics.median(prefill), "s", prompt_flops / flops if flops else None)
    add(f"decode after {PROMPT}", statistics.median(decode), "tok/s", bandwidth / step_bytes)

    # Time to first token: one picture and 32 tokens of text.
    one = GenerationOptions(max_new_tokens=1, ignore_eos=True)
    pads = np.full(16 * 16, geometry.special_ids.image_pad, np.int32)
    seconds = []
    for _ in range(REPEATS + 1):
        visual = replace(random_visual(geometry, 448, 448, rng), digest=rng.bytes(32))
        ids = np.concatenate([pads, random_tokens(geometry, 32, rng)])
        started = time.perf_counter()
        engine.generate([PreparedPrompt(ids, [visual], "")], [one])
        seconds.append(time.perf_counter() - started)
    floor = None
    if flops:
        tokens = 2 * decoder_parameters(geometry) * (len(pads) + 32)
        floor = (vision_flops(geometry, visual.grid_thw) + tokens) / flops
    add("first token, 448x448 and 32 tokens", statistics.median(seconds[1:]), "s", floor)

    plan = plan_memory(bundle, limits, None, "cuda")
    add("GPU memory taken", (before - cuda.load().device_info().free_bytes) / 2**30, "GiB")
    add("GPU memory planned", plan.total / 2**30, "GiB")
    return figures


def _median(call) -> float:
    call()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peer(checkpoint: Path) -> dict[str, object]:
    """transformers with a static cache and torch.compile on the same GPU, in a process of its own."""
    script = Path(__file__).with_name("gpu_peer.py")
    command = [sys.executable, str(script), str(checkpoint), str(PROMPT), str(ANSWER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1:] or ["unknown"]}
    return json.loads(done.stdout.splitlines()[-1])


def table(report: dict[str, object]) -> str:
    """The report as markdown."""
    machine_, limits = report["machine"], report["limits"]
    rate = limits["matrix_flops"]
    lines = [
        f"# {machine_['gpu']}",
        "",
        f"Driver {machine_['driver']}, ONNX Runtime {machine_['onnxruntime-gpu']}, random weights, medians "
        f"of {REPEATS}. A copy moves {limits['copy_bytes_per_second'] / 1e9:.0f} GB/s (read and written); "
        f"bfloat16 products run at {f'{rate / 1e12:.0f} TFLOP/s' if rate else 'an unmeasured rate'}.",
        "",
        "| model | | median | bound | share |",
        "|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        for figure in run["figures"]:
            bound = "" if figure["bound"] is None else f"{figure['bound']:.3g} {figure['unit']}"
            share = "" if figure["share"] is None else f"{figure['share']:.0%}"
            value = f"{figure['value']:.4g} {figure['unit']}"
            lines.append(f"| {run['model']} | {figure['name']} | {value} | {bound} | {share} |")
    for name, result in report["peers"].items():
        shown = ", ".join(f"{key} {value}" for key, value in result.items())
        lines += ["", f"transformers, static cache, torch.compile, {name}: {shown}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["2b"], choices=["2b", "7b"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int4"])
    parser.add_argument("--work", type=Path, default=Path("out/gpu-bench"), help="where bundles are kept")
    parser.add_argument(
        "--output", type=Path, required=True, help="without suffix: .json and .md are written"
    )
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    limits = {"copy_bytes_per_second": copy_bandwidth(), "matrix_flops": matrix_rate()}
    report: dict[str, object] = {"machine": machine(), "limits": limits, "runs": [], "peers": {}}
    for size in options.sizes:
        for precision in options.precisions:
            print(f"{size} {precision}", flush=True)
            bundle = random_bundle(size, precision, options.work)
            figures = measure(bundle, limits["copy_bytes_per_second"], limits["matrix_flops"])
            rows = [asdict(figure) | {"share": figure.share} for figure in figures]
            report["runs"].append({"model": f"{size} {precision}", "figures": rows})
            _write(options.output, report)
        if not options.no_peer:
            report["peers"][f"{size} bf16"] = peer(options.work / f"{size}-checkpoint")
    _write(options.output, report)
    print(table(report))


def _write(output: Path, report: dict[str, object]) -> None:
    """After every run: a machine that is taken away keeps what was measured."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    output.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
