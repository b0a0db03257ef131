"""Measure a GPU backend on one model, or the GPU's own limits. `make bench-gpu` runs these as stages.

    python bench/gpu.py limits --output limits.json
    python bench/gpu.py model 2b bf16 --limits limits.json --output 2b-bf16.json
    python bench/gpu.py model 2b bf16 --variants --output variants.json      (ways to run the engine)

Bundles of the published shapes with random weights are made in --work when they are first needed
(bench/random_bundle.py). A device's own copy counts bytes read and written; the matrix rate is that of
PyTorch's bfloat16 product of 8192^3 random numbers.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_bundle import write_random_bundle
from bench.random_checkpoint import PUBLISHED, published_config
from qwen2vl_rt import cuda
from qwen2vl_rt.benchmark.inputs import random_tokens, random_visual
from qwen2vl_rt.benchmark.timing import REPEATS, repeated
from qwen2vl_rt.benchmark.work import decoder_parameters, vision_flops
from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, Bundle
from qwen2vl_rt.engine import Engine
from qwen2vl_rt.executors import Backend
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.plan import plan_session, session_limits
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor
from qwen2vl_rt.processing.visuals import prepare_picture
from qwen2vl_rt.tensorrt.build import build_engines
from qwen2vl_rt.tensorrt.edition import find_edition
from qwen2vl_rt.tensorrt.find import Asked, EngineSet, find_engines
from qwen2vl_rt.tensorrt.gpu import compute_capability
from qwen2vl_rt.tensorrt.target import choose_target, edition_problem

PROMPT, ANSWER = 512, 128  # tokens
CONTEXT = 4096  # positions of the cache
# What the environment chooses (executors/cuda.py), in the order of its choices.
VARIANTS = (
    ("c", "1", "grouped", "own"),
    ("c", "1", "grouped", "onnxruntime"),
    ("c", "0", "grouped", "onnxruntime"),
    ("python", "1", "grouped", "onnxruntime"),
    ("python", "0", "grouped", "onnxruntime"),
    ("c", "0", "portable", "onnxruntime"),
)


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

    def multiply() -> None:
        a @ b
        torch.cuda.synchronize()

    return 2 * 8192**3 / statistics.median(repeated(multiply, 10))


def machine() -> dict[str, object]:
    """What ran: GPU, driver, versions."""
    info = cuda.load().device_info()
    versions = {}
    packages = ("onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "torch", "transformers", "numpy")
    for package in ("qwen2vl_rt", *packages):
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


def open_bundle(size: str, precision: str, work: Path, distinct: bool) -> Bundle:
    """The bundle of a published size with random weights, made once; `distinct`: no two layers are equal."""
    folder = work / f"{size}-{precision}{'-distinct' if distinct else ''}"
    if not (folder / "manifest.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_random_bundle(folder, published_config(size), precision, distinct)
    return Bundle.open(folder)


class Measurement:
    """Figures of one bundle on one backend."""

    def __init__(
        self, bundle: Bundle, limits: dict[str, Any], backend: str, output: Path, attention: str | None = None
    ) -> None:
        self._figures: list[Figure] = []
        self._output = output
        self._bundle = bundle
        self._geometry = bundle.geometry
        self._backend = backend
        self._attention = attention  # of TensorRT's decoder
        self._bandwidth: float | None = limits.get("copy_bytes_per_second")
        self._flops: float | None = limits.get("matrix_flops")
        self._rng = np.random.default_rng(0)
        self._limits = session_limits(bundle, max_length=CONTEXT, max_pixels=1008 * 1008)
        self._engine: Engine | None = None
        self._engines: list[EngineSet] = []  # with tensorrt

    def add(self, name: str, value: float, unit: str, bound: float | None = None) -> None:
        """Print a figure and write all so far: what was measured before something went wrong is kept."""
        self._figures.append(Figure(name, value, unit, bound))
        _write(self._output, {"figures": [asdict(f) | {"share": f.share} for f in self._figures]})
        print(f"  {name}: {value:.4g} {unit}", flush=True)

    def load(self) -> None:
        """Open the engine; its weights' files are in the page cache mostly."""
        processor = Processor(self._bundle.path, self._geometry)
        started = time.perf_counter()
        self._engine = Engine(
            self._bundle, self._limits, processor.tokenizer, 0, self._backend, self._engines
        )
        self._engine.synchronize()
        self.add("load", time.perf_counter() - started, "s")

    def everything(self) -> None:
        """All figures of a model."""
        before = cuda.load().device_info().free_bytes if self._backend != "cpu" else None
        if self._backend == "tensorrt":
            self.build_and_check()
        self.load()
        for side in (448, 1008):
            self.vision(side)
        self.text()
        self.text(temperature=0.8, top_p=0.95, seed=1)
        self.first_token()
        if before is not None:
            self.add("GPU memory taken", (before - cuda.load().device_info().free_bytes) / 2**30, "GiB")
        backend = Backend(self._backend, "", self._engines)
        plan = plan_session(self._bundle, backend, self._limits, Asked(CONTEXT), None)
        self.add("GPU memory planned", plan.total / 2**30, "GiB")

    def build_and_check(self) -> None:
        """TensorRT engines for this GPU, and their first load, which compares them with the CPU."""
        edition = find_edition()
        started = time.perf_counter()
        folder = self._bundle.path / f"engines-{self._attention or 'default'}"
        target = choose_target("this", edition)
        build_engines(self._bundle, edition, target, self._limits, attention=self._attention, output=folder)
        self.add("build of the engines", time.perf_counter() - started, "s")
        self._engines = find_engines(self._bundle, compute_capability(), Asked(CONTEXT), folder=folder)
        processor = Processor(self._bundle.path, self._geometry)
        started = time.perf_counter()
        Engine(self._bundle, self._limits, processor.tokenizer, 0, self._backend, self._engines).close()
        gc.collect()
        self.add("first load, with the self-check", time.perf_counter() - started, "s")
        if len(find_engines(self._bundle, compute_capability(), Asked(CONTEXT), folder=folder)) > 1:
            raise SystemExit(f"The form {self._attention!r} is wrong on this GPU: mask took its place.")

    def vision(self, side: int) -> None:
        """The vision tower alone, from float32 patches on the host to embeddings."""
        visual = random_visual(self._geometry, side, side, self._rng)
        bound = vision_flops(self._geometry, visual.grid_thw) / self._flops if self._flops else None

        def call() -> None:
            self._engine.encode([visual])
            self._engine.synchronize()

        self.add(f"vision {side}x{side}", statistics.median(repeated(call)), "s", bound)

    def text(self, label: str = "", **sampling: Any) -> None:
        """Prefill and decode, other tokens each time, or the cache would know them; the first warms up."""
        options = GenerationOptions(max_new_tokens=ANSWER, ignore_eos=True, **sampling)
        prefill, decode = [], []
        for repeat in range(REPEATS + 1):
            prompt = PreparedPrompt(random_tokens(self._geometry, PROMPT, self._rng), [], "")
            (result,), _ = self._engine.generate([prompt], [options])
            if repeat:
                prefill.append(result.prefill_seconds)
                decode.append((len(result.token_ids) - 1) / result.decode_seconds)
        if not sampling and not label:
            flops = 2 * decoder_parameters(self._geometry) * PROMPT
            bound = flops / self._flops if self._flops else None
            self.add(f"prefill of {PROMPT}", statistics.median(prefill), "s", bound)
        bound = self._bandwidth / step_bytes(self._bundle) if self._bandwidth else None
        how = label or (", sampled" if sampling else "")
        self.add(f"decode after {PROMPT}{how}", statistics.median(decode), "tok/s", bound)

    def first_token(self) -> None:
        """From a 448x448 frame on the host and 32 tokens of text to the first token, pixels included."""
        settings = PixelSettings.from_file(self._bundle.file("preprocessor_config.json"))
        exact = VisualOptions(resized_height=448, resized_width=448)
        one = GenerationOptions(max_new_tokens=1, ignore_eos=True)
        pads = np.full(16 * 16, self._geometry.special_ids.image_pad, np.int32)
        seconds = []
        for _ in range(REPEATS + 1):
            frame = self._rng.integers(0, 256, (448, 448, 3), np.uint8)
            ids = np.concatenate([pads, random_tokens(self._geometry, 32, self._rng)])
            started = time.perf_counter()
            visual, _ = prepare_picture(frame, exact, settings, frames=self._engine.device_frames)
            self._engine.generate([PreparedPrompt(ids, [visual], "")], [one])
            seconds.append(time.perf_counter() - started)
        floor = None
        if self._flops:
            tokens = 2 * decoder_parameters(self._geometry) * (len(pads) + 32)
            floor = (vision_flops(self._geometry, visual.grid_thw) + tokens) / self._flops
        self.add("first token, 448x448 and 32 tokens", statistics.median(seconds[1:]), "s", floor)

    def variants(self) -> None:
        """Decode with each way to run the engine."""
        from qwen2vl_rt.executors.cuda import CHOICES

        for variant in VARIANTS:
            os.environ |= dict(zip(CHOICES, variant, strict=True))
            calls, graphs, attention, layers = variant
            self._engine = None
            gc.collect()
            self.load()
            caller = "C API" if calls == "c" else "Python"
            recorded = "recorded" if graphs == "1" else "launched one by one"
            how = f"ONNX Runtime by {caller}, {recorded}, {attention} attention"
            self.text(", our own kernels" if layers == "own" else f", {how}")


def step_bytes(bundle: Bundle) -> int:
    """Bytes of weights that a decode step reads."""
    tied = bundle.geometry.decoder.tied_embedding
    return bundle.files[DECODER_WEIGHTS].size + (bundle.files[EMBEDDING].size if tied else 0)


def skip_reason(backend: str) -> str:
    """Why the GPU here has no use for the backend, which is no failure; "" if it has, or there is none."""
    here = compute_capability()
    return edition_problem(here) if backend == "tensorrt" and here else ""


def main() -> None:
    """Measure, print, write; what its GPU has no use for is written as skipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    model = what.add_parser("model", help="one bundle")
    model.add_argument("size", choices=sorted(PUBLISHED))
    model.add_argument("precision")
    model.add_argument("--variants", action="store_true", help="decode, with each way to run the engine")
    model.add_argument("--limits", type=Path, help="what `limits` wrote")
    model.add_argument("--work", type=Path, default=Path("out/gpu-bench"), help="where bundles are made")
    model.add_argument("--backend", default="cuda", choices=("cuda", "tensorrt", "cpu"))
    model.add_argument("--attention", help="with tensorrt: as of `qwen2vl build`")
    for command in (model, what.add_parser("limits", help="the GPU's copy bandwidth and matrix rate")):
        command.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    if options.what == "limits":
        rates = {"copy_bytes_per_second": copy_bandwidth(), "matrix_flops": matrix_rate()}
        _write(options.output, {"machine": machine(), "limits": rates})
        return
    if reason := skip_reason(options.backend):
        _write(options.output, {"skipped": reason})
        print(f"skipped: {reason}")
        return
    limits: dict[str, Any] = {}
    if options.limits is not None and options.limits.exists():
        limits = json.loads(options.limits.read_text())["limits"]
    bundle = open_bundle(
        options.size, options.precision, options.work, distinct=options.backend == "tensorrt"
    )
    measurement = Measurement(bundle, limits, options.backend, options.output, options.attention)
    if options.variants:
        measurement.variants()
    else:
        measurement.everything()


def _write(output: Path, result: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
