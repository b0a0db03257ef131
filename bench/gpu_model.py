"""Measure a GPU backend on one model. `make bench-gpu` runs this as stages.

    python -m bench.gpu_model 2b bf16 --limits limits.json --output 2b-bf16.json
    python -m bench.gpu_model 2b bf16 --variants --output variants.json      (ways to run the engine)

Bundles of the published shapes with random weights are made in --work when they are first needed
(bench/random_bundle.py).
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from bench.gpu_figures import Figures, read_limits, write_json
from bench.random_bundle import published_bundle
from bench.random_checkpoint import PUBLISHED
from qwen2vl_export.graph import ZERO_POINT
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.backend import Backend
from qwen2vl_rt.backends.cpu.backend import CpuBackend
from qwen2vl_rt.backends.cuda.backend import CudaBackend
from qwen2vl_rt.backends.tensorrt.backend import TensorRTBackend
from qwen2vl_rt.backends.tensorrt.build import build_engines
from qwen2vl_rt.backends.tensorrt.edition import find_edition
from qwen2vl_rt.backends.tensorrt.find import find_engines
from qwen2vl_rt.backends.tensorrt.gpu import compute_capability
from qwen2vl_rt.backends.tensorrt.target import choose_target, edition_problem
from qwen2vl_rt.benchmark.inputs import random_picture, random_tokens, random_visual
from qwen2vl_rt.benchmark.timing import REPEATS, repeated
from qwen2vl_rt.benchmark.work import decoder_parameters, vision_flops
from qwen2vl_rt.bundle import DECODER_GRAPH, Bundle
from qwen2vl_rt.loaded_model import LoadedModel
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.plan import kv_bytes_per_token
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor, Visual
from qwen2vl_rt.processing.visuals import prepare_picture
from qwen2vl_rt.session_limits import AskedLimits

BACKENDS = {backend.name: backend for backend in (CpuBackend, CudaBackend, TensorRTBackend)}
PROMPT, ANSWER = 512, 128  # tokens
CONTEXT = 4096  # positions of the cache
# Ways to run decode steps (docs/cuda.md): what is not named has its default.
VARIANTS = (
    {},
    {"QWEN2VL_CUDA_STARTS": "in-turn"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_GRAPHS": "0"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_CALLS": "python"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_CALLS": "python", "QWEN2VL_CUDA_GRAPHS": "0"},
    {"QWEN2VL_CUDA_LAYERS": "onnxruntime", "QWEN2VL_CUDA_GRAPHS": "0", "QWEN2VL_CUDA_ATTENTION": "portable"},
)


def memory_in_use() -> int | None:
    """Bytes of GPU 0 in use, by whomever, as nvidia-smi has it: where CUDA has not been called yet, without
    this process's CUDA context. None without nvidia-smi.
    """
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) << 20
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


class Measurement:
    """Figures of one bundle on one backend. `in_use`: what `memory_in_use` said before CUDA's first call."""

    def __init__(
        self,
        bundle: Bundle,
        limits: dict[str, Any],
        backend: str,
        output: Path,
        attention: str | None = None,
        in_use: int | None = None,
    ) -> None:
        self._figures = Figures(output)
        self._in_use = in_use
        self._bundle = bundle
        self._geometry = bundle.geometry
        self._backend: Backend = BACKENDS[backend]("measured")
        self._attention = attention  # of TensorRT's decoder
        self._bandwidth: float | None = limits.get("copy_bytes_per_second")
        self._flops: float | None = limits.get("matrix_flops")
        self._rng = np.random.default_rng(0)
        self._limits = AskedLimits(max_length=CONTEXT, max_pixels=1008 * 1008).for_bundle(bundle)
        self._model: LoadedModel | None = None

    def load(self, label: str = "") -> None:
        """Open the model; its weights' files are in the page cache mostly."""
        processor = Processor(self._bundle.path, self._geometry)
        started = time.perf_counter()
        self._model = LoadedModel(self._bundle, self._limits, processor.tokenizer, 0, self._backend)
        self._model.synchronize()
        self._figures.add(f"load, {label}" if label else "load", time.perf_counter() - started, "s")

    def everything(self) -> None:
        """All figures of a model."""
        free = cuda.load().device_info().free_bytes if self._backend.name != "cpu" else 0
        if self._backend.name == "tensorrt":
            self.build_and_check()
        self.load()
        for side in (448, 1008):
            self.vision(side)
        self.text()
        self.text(temperature=0.8, top_p=0.95, seed=1)
        self.first_token()
        if self._in_use is not None:
            self._figures.add("GPU memory taken", (memory_in_use() - self._in_use) / 2**30, "GiB")
        elif self._backend.name != "cpu":
            taken = free - cuda.load().device_info().free_bytes
            self._figures.add("GPU memory taken, without the CUDA context", taken / 2**30, "GiB")
        plan = self._backend.plan(self._bundle, self._limits, None)
        self._figures.add("GPU memory planned", plan.total / 2**30, "GiB")

    def build_and_check(self) -> None:
        """TensorRT engines for this GPU, and their first load, which compares them with the CPU."""
        edition = find_edition()
        started = time.perf_counter()
        folder = self._bundle.path / f"engines-{self._attention or 'default'}"
        target = choose_target("this", edition)
        build_engines(self._bundle, edition, target, self._limits, attention=self._attention, output=folder)
        self._figures.add("build of the engines", time.perf_counter() - started, "s")
        found = find_engines(self._bundle, compute_capability(), AskedLimits(CONTEXT), folder=folder)
        self._backend = TensorRTBackend("measured", found)
        processor = Processor(self._bundle.path, self._geometry)
        started = time.perf_counter()
        LoadedModel(self._bundle, self._limits, processor.tokenizer, 0, self._backend).close()
        gc.collect()
        self._figures.add("first load, with the self-check", time.perf_counter() - started, "s")
        if len(find_engines(self._bundle, compute_capability(), AskedLimits(CONTEXT), folder=folder)) > 1:
            raise SystemExit(f"The form {self._attention!r} is wrong on this GPU: mask took its place.")

    def vision(self, side: int) -> None:
        """From a picture's uint8 pixels on the host to its embeddings, as a session takes it (patches are
        made on the GPU); and the vision tower alone, from float32 patches on the host.
        """
        settings, exact = self._pixels(side)
        visual = random_visual(self._geometry, side, side, self._rng)
        bound = vision_flops(self._geometry, visual.grid_thw) / self._flops if self._flops else None
        picture = random_picture(side, side, self._rng)

        def encode(visual: Visual) -> None:
            self._model.encode([visual])
            self._model.synchronize()

        def whole() -> None:
            encode(prepare_picture(picture, exact, settings, frames=self._model.device_frames)[0])

        self._figures.add(f"vision {side}x{side}", statistics.median(repeated(whole)), "s", bound)
        alone = statistics.median(repeated(lambda: encode(visual)))
        self._figures.add(f"vision {side}x{side}, from patches on the host", alone, "s", bound)

    def _pixels(self, side: int) -> tuple[PixelSettings, VisualOptions]:
        """How a picture becomes one of side x side pixels."""
        settings = PixelSettings.from_folder(self._bundle.path)
        return settings, VisualOptions(resized_height=side, resized_width=side)

    def text(self, label: str = "", **sampling: Any) -> None:
        """Prefill and decode, other tokens each time, or the cache would know them; the first warms up."""
        options = GenerationOptions(max_new_tokens=ANSWER, ignore_eos=True, **sampling)
        prefill, decode = [], []
        for repeat in range(REPEATS + 1):
            prompt = PreparedPrompt(random_tokens(self._geometry, PROMPT, self._rng), [], "")
            (result,), _ = self._model.generate([prompt], [options])
            if repeat:
                prefill.append(result.prefill_seconds)
                decode.append((len(result.token_ids) - 1) / result.decode_seconds)
        if not sampling and not label:
            flops = 2 * decoder_parameters(self._geometry) * PROMPT
            bound = flops / self._flops if self._flops else None
            self._figures.add(f"prefill of {PROMPT}", statistics.median(prefill), "s", bound)
        bound = self._bandwidth / step_bytes(self._bundle) if self._bandwidth else None
        how = label or ("sampled" if sampling else "")
        self._figures.add(
            f"decode after {PROMPT}{how and ', '}{how}", statistics.median(decode), "tok/s", bound
        )

    def first_token(self) -> None:
        """From a 448x448 frame on the host and 32 tokens of text to the first token, pixels included."""
        settings, exact = self._pixels(448)
        one = GenerationOptions(max_new_tokens=1, ignore_eos=True)
        pads = np.full(16 * 16, self._geometry.special_ids.image_pad, np.int32)
        times = []
        for _ in range(REPEATS + 1):
            frame = self._rng.integers(0, 256, (448, 448, 3), np.uint8)
            ids = np.concatenate([pads, random_tokens(self._geometry, 32, self._rng)])
            started = time.perf_counter()
            visual, _ = prepare_picture(frame, exact, settings, frames=self._model.device_frames)
            self._model.generate([PreparedPrompt(ids, [visual], "")], [one])
            times.append(time.perf_counter() - started)
        floor = None
        if self._flops:
            tokens = 2 * decoder_parameters(self._geometry) * (len(pads) + 32)
            floor = (vision_flops(self._geometry, visual.grid_thw) + tokens) / self._flops
        self._figures.add("first token, 448x448 and 32 tokens", statistics.median(times[1:]), "s", floor)

    def variants(self) -> None:
        """Decode with each way to run the engine. One that fails is recorded, and the next ones go on."""
        from qwen2vl_rt.backends.cuda.settings import CHOICES

        for variant in VARIANTS:
            os.environ |= {name: values[0] for name, values in CHOICES.values()} | variant
            name = ", ".join(f"{name}={value}" for name, value in variant.items()) or "defaults"
            self._model = None
            gc.collect()
            try:
                self.load(name)
                self.text(name)
            except Exception as error:
                self._figures.fail(name, error)
        if failed := self._figures.failed:
            raise SystemExit(f"{len(failed)} of {len(VARIANTS)} ways failed: {'; '.join(failed)}")


def step_bytes(bundle: Bundle) -> int:
    """Bytes that the GPU reads for a token of a bundle with random weights, on average over a measured
    answer: weights, and keys and values of the past.
    """
    narrow = 2 if bundle.precision != "fp32" else 4  # a quantized bundle's scales, norms and biases
    sizes = {TensorProto.FLOAT: narrow, TensorProto.BFLOAT16: 2, TensorProto.FLOAT16: 2}
    sizes |= {TensorProto.UINT8: 1, TensorProto.INT8: 1, TensorProto.UINT4: 0.5}
    weights = 0.0
    for tensor in onnx.load(bundle.file(DECODER_GRAPH), load_external_data=False).graph.initializer:
        # Random weights' zero points are the middle of the codes: left out (lowering/matmul_nbits.py).
        if tensor.data_type in sizes and not tensor.name.endswith(ZERO_POINT):
            weights += sizes[tensor.data_type] * math.prod(tensor.dims)
    return round(weights) + (PROMPT + ANSWER // 2) * kv_bytes_per_token(bundle.geometry, narrow)


def skip_reason(backend: str) -> str:
    """Why the GPU here has no use for the backend, which is no failure; "" if it has, or there is none."""
    here = compute_capability()
    return edition_problem(here) if backend == "tensorrt" and here else ""


def main() -> None:
    """Measure, print, write; what its GPU has no use for is written as skipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=sorted(PUBLISHED))
    parser.add_argument("precision")
    parser.add_argument("--variants", action="store_true", help="decode, with each way to run the engine")
    parser.add_argument("--limits", type=Path, help="what bench/gpu_limits.py wrote")
    parser.add_argument("--work", type=Path, default=Path("out/gpu-bench"), help="where bundles are made")
    parser.add_argument("--backend", default="cuda", choices=sorted(BACKENDS))
    parser.add_argument("--attention", help="with tensorrt: as of `qwen2vl build`")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    in_use = memory_in_use()
    if reason := skip_reason(options.backend):
        write_json(options.output, {"skipped": reason})
        print(f"skipped: {reason}")
        return
    limits = read_limits(options.limits)
    bundle = published_bundle(
        options.size, options.precision, options.work, distinct=options.backend == "tensorrt"
    )
    measurement = Measurement(bundle, limits, options.backend, options.output, options.attention, in_use)
    if options.variants:
        measurement.variants()
    else:
        measurement.everything()


if __name__ == "__main__":
    main()
