"""The measurements, from load to the longest prompt."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from qwen2vl_rt.backends.cpu.backend import CpuBackend
from qwen2vl_rt.backends.cpu.plan import plan_cpu
from qwen2vl_rt.benchmark import timing
from qwen2vl_rt.benchmark.inputs import random_picture, random_tokens, random_visual
from qwen2vl_rt.benchmark.limits import Limits, measure_limits
from qwen2vl_rt.benchmark.report import DECODE, PREFILL, VISION, Figure, Report
from qwen2vl_rt.benchmark.work import Work, decode_work, prefill_work, vision_work
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.loaded_model import LoadedModel
from qwen2vl_rt.machine import physical_memory, processor_name, usable_cores
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.peak_memory import peak_memory, reset_peak, resident_memory
from qwen2vl_rt.plan import GIB
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor
from qwen2vl_rt.session_limits import AskedLimits

REPEATS = 3  # of what a figure is the median of; limits, of which the best counts, are measured more often
LONG_SECONDS = 3.0  # what takes longer is measured once and not warmed up
QUESTION, QUESTION_TOKENS = "What is in the picture?", 64  # the latter with the template's own, generously

Bound = Callable[[Limits], float]

T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    """What to measure."""

    pictures: Sequence[tuple[int, int]] = ((224, 224), (448, 448), (1260, 840))
    """Picture sizes (width, height) in pixels after resizing."""
    lengths: Sequence[int] = (128, 512)
    """Prompt lengths in tokens; decode is measured after each."""
    batches: Sequence[int] = (1, 4)
    """How many prompts of each length are answered side by side."""
    decode_tokens: int = 32
    first_token: bool = True
    """Also measure the time from each picture's pixels to the first token of an answer."""

    @staticmethod
    def growth(decode_tokens: int = 32) -> Workload:
        """From small to the largest: 256 to 16,384 patches, 128 to 16,384 tokens."""
        sides = [14 * patches for patches in (16, 32, 64, 128)]
        lengths = (128, 512, 2048, 8192, 16384)
        return Workload([(side, side) for side in sides], lengths, (1,), decode_tokens, first_token=False)


def steps(workload: Workload) -> int:
    """How often `run_benchmark` reports progress."""
    pictures = len(workload.pictures) * (2 if workload.first_token else 1)
    return 3 + pictures + len(workload.lengths) * len(workload.batches)


def run_benchmark(
    path: str | Path, workload: Workload, threads: int = 0, progress: Callable[[int], None] | None = None
) -> Report:
    """Load the bundle at `path` on the CPU and measure it with random tokens and pictures.

    The machine's limits are measured before and after, and the higher of each counts. `progress` is called
    with 1 after each of `steps(workload)` measurements. The time to the first token is left out where the
    bundle has no chat template.
    """
    done = progress or (lambda _count: None)
    bundle = Bundle.open(path)
    limits = measure_limits(threads, bundle.quantized)
    done(1)
    run = _Run(bundle, workload, threads, done)
    run.vision()
    run.text()
    run.memory()
    limits = limits.best(measure_limits(threads, bundle.quantized))
    done(1)
    figures = [replace(figure, limit=bound and bound(limits)) for figure, bound in run.found]
    return Report(bundle.name, bundle.precision, machine(threads), limits, figures)


class _Run:
    """A loaded bundle and what was found about it: figures, each with the way to its limit."""

    def __init__(self, bundle: Bundle, workload: Workload, threads: int, done: Callable[[int], None]) -> None:
        self.found: list[tuple[Figure, Bound | None]] = []
        self._bundle, self._workload, self._done = bundle, workload, done
        self._rng = np.random.default_rng(0)
        token_side = bundle.geometry.vision.patch_size * bundle.geometry.vision.merge_size
        visual_tokens = [width * height // token_side**2 for width, height in workload.pictures]
        longest = max(*workload.lengths, *visual_tokens) + QUESTION_TOKENS + workload.decode_tokens
        self._limits = AskedLimits(longest, max(workload.batches)).for_bundle(bundle)
        reset_peak()
        started = time.perf_counter()
        self._processor = Processor(bundle.path, bundle.geometry)
        self._model = LoadedModel(
            bundle, self._limits, self._processor.tokenizer, threads, CpuBackend("measured")
        )
        seconds = time.perf_counter() - started
        size = sum(entry.size for entry in bundle.files.values())
        self._add(Figure("load", seconds, "s"), lambda limits: size / limits.read_bytes_per_second)
        self._peaks = [peak_memory()]
        self._add(Figure("peak memory of loading", self._peaks[0] / GIB, "GiB"), _all_memory)
        self._warm_up()
        self._rest = resident_memory()
        self._add(Figure("memory at rest", self._rest / GIB, "GiB"), _all_memory)
        done(1)

    def vision(self) -> None:
        """The tower alone, and pixels to first token."""
        geometry = self._bundle.geometry
        for width, height in self._workload.pictures:
            visual = random_visual(geometry, width, height, self._rng)
            encode = partial(self._model.encode, [visual])
            seconds, memory = self._measured(partial(timing.seconds, encode))
            work = vision_work(self._bundle, visual.grid_thw)
            patches = math.prod(visual.grid_thw)
            self._add(
                Figure(
                    f"vision {width}x{height}",
                    statistics.median(seconds),
                    "s",
                    kind=VISION,
                    size=patches,
                    repeats=len(seconds),
                    memory=memory,
                ),
                lambda limits, work=work: limits.seconds(work),
            )
            self._done(1)
            if self._workload.first_token:
                self._first_token(width, height, work)
                self._done(1)

    def _first_token(self, width: int, height: int, vision: Work) -> None:
        if self._processor.template is None:
            return
        one = GenerationOptions(max_new_tokens=1, ignore_eos=True)
        tokens = 0

        def answer() -> float:
            nonlocal tokens
            picture = random_picture(width, height, self._rng)  # a new one: the cache would know the last
            started = time.perf_counter()
            prompt = self._processor.prepare(
                QUESTION, images=[picture], resized_width=width, resized_height=height
            )
            self._model.generate([prompt], [one])
            tokens = len(prompt.token_ids)
            return time.perf_counter() - started

        seconds, memory = self._measured(answer)
        prefill = prefill_work(self._bundle, tokens)
        self._add(
            Figure(
                f"first token, {width}x{height} and a question",
                statistics.median(seconds),
                "s",
                repeats=len(seconds),
                memory=memory,
            ),
            lambda limits: limits.seconds(vision) + limits.seconds(prefill),
        )

    def text(self) -> None:
        """Prefill and decode of random tokens, by length and batch."""
        for batch in self._workload.batches:
            for length in self._workload.lengths:
                self._text(length, batch)
                self._done(1)

    def _text(self, length: int, batch: int) -> None:
        new_tokens = self._workload.decode_tokens
        options = [GenerationOptions(max_new_tokens=new_tokens, ignore_eos=True)] * batch

        def answer() -> tuple[float, float]:
            # Other tokens each time: the cache would know the last ones.
            prompts = [
                PreparedPrompt(random_tokens(self._bundle.geometry, length, self._rng), [], "")
                for _ in range(batch)
            ]
            results, _ = self._model.generate(prompts, options)
            # The last row's decoding begins when all prompts are read: from there on all rows decode.
            prefill = batch * length / sum(result.prefill_seconds for result in results)
            return prefill, batch * (new_tokens - 1) / results[-1].decode_seconds

        rates, memory = self._measured(answer)
        side_by_side = f" x {batch}" if batch > 1 else ""
        for kind, name, values, bound in (
            (
                PREFILL,
                f"prefill of {length}{side_by_side}",
                [rate for rate, _ in rates],
                self._prefill_bound(length),
            ),
            (
                DECODE,
                f"decode after {length}{side_by_side}",
                [rate for _, rate in rates],
                self._decode_bound(length, batch),
            ),
        ):
            self._add(
                Figure(
                    name,
                    statistics.median(values),
                    "tok/s",
                    kind=kind,
                    size=length,
                    batch=batch,
                    repeats=len(values),
                    memory=memory,
                ),
                bound,
            )

    def _prefill_bound(self, length: int) -> Bound:
        work = prefill_work(self._bundle, length)
        return lambda limits: length / limits.seconds(work)

    def _decode_bound(self, length: int, batch: int) -> Bound:
        work = decode_work(self._bundle, length + self._workload.decode_tokens // 2, batch)
        return lambda limits: batch / limits.seconds(work)

    def memory(self) -> None:
        """The process's peak over everything, beside the plan."""
        self._add(Figure("peak memory", max(self._peaks) / GIB, "GiB"), _all_memory)
        # What is planned for pictures is the largest one measured.
        pixels = max(width * height for width, height in self._workload.pictures)
        plan = plan_cpu(self._bundle, replace(self._limits, max_pixels=pixels))
        self._add(Figure("memory planned", plan.total / GIB, "GiB"), _all_memory)

    def _warm_up(self) -> None:
        """Touch every weight once, so that mapped ones are in memory and the rest is what requests take."""
        geometry = self._bundle.geometry
        side = geometry.vision.patch_size * geometry.vision.merge_size
        self._model.encode([random_visual(geometry, 4 * side, 4 * side, self._rng)])
        prompt = PreparedPrompt(random_tokens(geometry, 16, self._rng), [], "")
        self._model.generate([prompt], [GenerationOptions(max_new_tokens=2, ignore_eos=True)])

    def _measured(self, call: Callable[[], T]) -> tuple[list[T], int]:
        """What up to REPEATS calls after one that warms up return, and the memory that they took, in bytes.

        A long first call is the only one.
        """
        reset_peak()
        started = time.perf_counter()
        values = [call()]
        if time.perf_counter() - started < LONG_SECONDS:
            values = [call() for _ in range(REPEATS)]
        self._peaks.append(peak_memory())
        return values, max(0, self._peaks[-1] - self._rest)

    def _add(self, figure: Figure, bound: Bound | None = None) -> None:
        self.found.append((figure, bound))


def _all_memory(_limits: Limits) -> float:
    return physical_memory() / GIB


def machine(threads: int) -> dict[str, Any]:
    """Processor, threads and versions."""
    return {
        "cpu": processor_name(),
        "threads": threads or usable_cores(),
        "memory": physical_memory(),
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
    }
