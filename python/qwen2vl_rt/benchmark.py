"""Measure a bundle here: vision, prefill, decode, load and memory, beside the machine's own limits."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.engine import Engine
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.plan import plan_memory, resident_memory, session_limits
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor, Visual

REPEATS = 3


@dataclass(frozen=True)
class Workload:
    """What to measure."""

    pictures: Sequence[tuple[int, int]] = ((224, 224), (448, 448))
    """Picture sizes (width, height) in pixels after resizing."""
    lengths: Sequence[int] = (128, 512)
    """Prompt lengths in tokens; decode is measured after each."""
    decode_tokens: int = 32


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured in the same run with the same threads."""

    read_bytes_per_second: float
    """Reading memory, all threads."""
    matrix_flops: float
    """A float32 matrix product of 2048 x 2048 x 2048 in the engine."""


@dataclass(frozen=True)
class Figure:
    """One measured median. `limit` is what the machine's limits allow, in the same unit."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """Share of the limit reached: limit over value for seconds, value over limit for rates."""
        if self.limit is None:
            return None
        return self.limit / self.value if self.unit == "s" else self.value / self.limit


@dataclass
class Report:
    """All figures of one run."""

    bundle: str
    precision: str
    machine: dict[str, Any]
    limits: Limits
    figures: list[Figure] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers."""
        report = asdict(self)
        report["figures"] = [asdict(figure) | {"ratio": figure.ratio} for figure in self.figures]
        return report

    def table(self) -> str:
        """The report as a markdown table."""
        lines = [
            f"{self.bundle}, {self.precision}; {self.machine['cpu']}, {self.machine['threads']} threads, "
            f"ONNX Runtime {self.machine['onnxruntime']}. The machine reads "
            f"{self.limits.read_bytes_per_second / 1e9:.1f} GB/s and multiplies float32 matrices at "
            f"{self.limits.matrix_flops / 1e9:.0f} GFLOP/s.",
            "",
            "| | median | machine's limit | share |",
            "|---|---|---|---|",
        ]
        for figure in self.figures:
            limit = "" if figure.limit is None else f"{figure.limit:.3g} {figure.unit}"
            share = "" if figure.ratio is None else f"{figure.ratio:.0%}"
            lines.append(f"| {figure.name} | {figure.value:.3g} {figure.unit} | {limit} | {share} |")
        return "\n".join(lines)


def run_benchmark(
    path: str | Path, workload: Workload, threads: int = 0, progress: Callable[[int], None] | None = None
) -> Report:
    """Load the bundle at `path` and measure it with random tokens and patches.

    Speed doesn't depend on what the tokens say. `progress` is called with 1 after each of
    `steps(workload)` measurements.
    """
    done = progress or (lambda _count: None)
    bundle = Bundle.open(path)
    limits = measure_limits(threads)
    done(1)
    report = Report(bundle.name, bundle.precision, _machine(threads), limits)
    add = report.figures.append

    longest = max(workload.lengths) + workload.decode_tokens
    started = time.perf_counter()
    processor = Processor(bundle.path, bundle.geometry)
    session = session_limits(bundle, max_length=longest)
    engine = Engine(bundle, session, processor.tokenizer, threads)
    add(Figure("load", time.perf_counter() - started, "s"))
    add(Figure("resident after load", resident_memory() / 2**30, "GiB"))
    done(1)

    rng = np.random.default_rng(0)
    for width, height in workload.pictures:
        visual = random_visual(bundle.geometry, width, height, rng)
        seconds = _median(lambda visual=visual: engine.encode([visual]))
        limit = vision_flops(bundle.geometry, visual.grid_thw) / limits.matrix_flops
        add(Figure(f"vision {width}x{height}", seconds, "s", limit))
        done(1)

    weight_bytes = _decoder_bytes(bundle)
    for length in workload.lengths:
        options = GenerationOptions(max_new_tokens=workload.decode_tokens, ignore_eos=True)
        prefill, decode = [], []
        for _ in range(REPEATS):  # other tokens each time, or the cache would know them
            prompt = PreparedPrompt(random_tokens(bundle.geometry, length, rng), [], "")
            (result,), _ = engine.generate([prompt], [options])
            prefill.append(result.prefill_seconds)
            decode.append((len(result.token_ids) - 1) / max(result.decode_seconds, 1e-9))
        flops = 2 * decoder_parameters(bundle.geometry) * length
        add(
            Figure(
                f"prefill of {length}",
                length / statistics.median(prefill),
                "tok/s",
                length * limits.matrix_flops / flops,
            )
        )
        add(
            Figure(
                f"decode after {length}",
                statistics.median(decode),
                "tok/s",
                limits.read_bytes_per_second / weight_bytes,
            )
        )
        done(1)
    add(Figure("peak resident memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB"))
    plan = plan_memory(bundle, session, None)
    add(Figure("planned for this session", plan.total / 2**30, "GiB"))
    return report


def steps(workload: Workload) -> int:
    """How often `run_benchmark` reports progress."""
    return 2 + len(workload.pictures) + len(workload.lengths)


def measure_limits(threads: int) -> Limits:
    """Measure memory reading and the engine's float32 matrix product: limits, so the best of a few."""
    workers = threads or len(_cores())
    block = np.ones(256 << 20, np.uint8).view(np.uint64)
    slices = np.array_split(block, workers)
    with ThreadPoolExecutor(workers) as pool:
        seconds = min(_seconds(lambda: list(pool.map(np.add.reduce, slices))))
    size = 2048
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["a", "b"], ["c"])],
            "limit",
            [value(name, TensorProto.FLOAT, [size, size]) for name in "ab"],
            [value("c", TensorProto.FLOAT, [size, size])],
        ),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    matrix = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    product = min(_seconds(lambda: session.run(None, {"a": matrix, "b": matrix})))
    return Limits(block.nbytes / seconds, 2 * size**3 / product)


def decoder_parameters(geometry: Geometry) -> int:
    """Weights that one prompt token multiplies: all layers, without embedding and lm_head."""
    d = geometry.decoder
    attention = d.hidden_size * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
    return d.layers * (attention + 3 * d.hidden_size * d.mlp_size)


def vision_flops(geometry: Geometry, grid_thw: tuple[int, int, int]) -> int:
    """Multiply-adds counted twice: the tower's matrix products and its attention."""
    v, (t, h, w) = geometry.vision, grid_thw
    patches, merged = h * w, geometry.vision.embed_dim * geometry.vision.merge_size**2
    layer = 4 * v.embed_dim**2 + 2 * v.embed_dim * v.mlp_size
    a_patch = v.patch_values * v.embed_dim + v.depth * (layer + 2 * patches * v.embed_dim)
    merger = merged * (merged + geometry.decoder.hidden_size) // v.merge_size**2
    return 2 * t * patches * (a_patch + merger)


def _decoder_bytes(bundle: Bundle) -> int:
    """Bytes of weights that a decode step reads, as the CPU holds them (float32), lm_head included."""
    d = bundle.geometry.decoder
    return 4 * (decoder_parameters(bundle.geometry) + d.vocab_size * d.hidden_size)


def random_tokens(geometry: Geometry, length: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [length] of the vocabulary's lower half: ordinary text. Special tokens lie at its end."""
    return rng.integers(0, geometry.decoder.vocab_size // 2, length, dtype=np.int32)


def random_visual(geometry: Geometry, width: int, height: int, rng: np.random.Generator) -> Visual:
    """A picture of random patches; width and height in pixels, multiples of the merged patch."""
    side = geometry.vision.patch_size
    grid = (1, height // side, width // side)
    patches = rng.standard_normal((1, grid[1] * grid[2], geometry.vision.patch_values), dtype=np.float32)
    return Visual("image", grid, patches, width, height, b"")


def _median(call: Callable[[], object]) -> float:
    return statistics.median(_seconds(call))


def _seconds(call: Callable[[], object]) -> list[float]:
    """Seconds of REPEATS calls after one that warms up."""
    call()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


def _machine(threads: int) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "threads": threads or len(_cores()),
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
    }
