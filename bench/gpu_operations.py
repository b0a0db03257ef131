"""How long each kind of launch of a decode step takes on a GPU, and how much of its bandwidth that is.

    python -m bench.gpu_operations 2b bf16 --limits limits.json --output 2b-operations.json

A kind's launches of all layers, each with its own weights, are recorded one after the other and replayed;
the median of many replays is divided by their number. Before each replay other memory passes through the L2
cache, as all other weights do in a step. What is not the step's program (embedding, tables, sampling) is not
here: the report has it as what is left of a whole step's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu_figures import Figures, read_limits
from bench.gpu_model import CONTEXT, PROMPT
from bench.random_bundle import published_bundle
from bench.random_checkpoint import PUBLISHED
from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda import executors
from qwen2vl_rt.backends.cuda.program import DeviceWeights, ProgramWriter
from qwen2vl_rt.backends.cuda.settings import CudaSettings
from qwen2vl_rt.backends.device.steps import device_steps
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.geometry import DecoderGeometry
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.session_limits import AskedLimits

REPLAYS = 30
WARM_SECONDS = 0.3  # an idle GPU's clock takes its time
FEWEST = 4  # launches in a recording: of fewer, its own start would show
OTHER_BYTES = 1 << 28  # more than any L2 cache holds


@dataclass(frozen=True)
class Launch:
    """One operation of a step's program: its kind, the bytes that it has to read, and how to add it again."""

    kind: str
    read_bytes: int
    add: Callable[[_core.StepProgram], None]


class LaunchList:
    """Stands in for a `_core.StepProgram` while a `ProgramWriter` writes: keeps the operations.

    Args:
        program: whose memory holds what they leave for each other.
        geometry: the decoder's.
        item: bytes of a number.
        past: positions that the cache holds.
    """

    def __init__(self, program: _core.StepProgram, geometry: DecoderGeometry, item: int, past: int) -> None:
        self.launches: list[Launch] = []
        self._program, self._geometry = program, geometry
        self._item, self._past = item, past

    def allocate(self, width: int, dtype: str) -> int:
        """See StepProgram.allocate."""
        return self._program.allocate(width, dtype)

    def linear(self, step: dict[str, Any], matrices: list[dict[str, int]]) -> None:
        """See StepProgram.linear."""
        outputs = "+".join(str(matrix["outputs"]) for matrix in matrices)
        kind = f"{self._role(step, matrices)}, {step['inputs']} to {outputs}"
        read = sum(self._matrix_bytes(step, matrix) for matrix in matrices)
        self.launches.append(Launch(kind, read, lambda program: program.linear(step, matrices)))

    def attention(self, layer: int, heads: int, *addresses: int) -> None:
        """See StepProgram.attention."""
        kv = self._geometry.kv_heads * self._geometry.head_dim
        kind = f"attention after {self._past}, {heads} heads over {self._geometry.kv_heads}"
        read = 2 * self._past * kv * self._item
        self.launches.append(Launch(kind, read, lambda program: program.attention(layer, heads, *addresses)))

    def _role(self, step: dict[str, Any], matrices: list[dict[str, int]]) -> str:
        if matrices[0]["outputs"] == self._geometry.vocab_size:
            return "lm_head"
        if step["gated"]:
            return "gate and up"
        if step["rotated"]:
            return "queries, keys, values"
        return "down" if step["inputs"] == self._geometry.mlp_size else "o"

    def _matrix_bytes(self, step: dict[str, Any], matrix: dict[str, int]) -> int:
        inputs, outputs = step["inputs"], matrix["outputs"]
        bias = outputs * self._item if "bias" in matrix else 0
        if step["form"] == "plain":
            return inputs * outputs * self._item + bias
        bits = int(step["form"].removeprefix("blocks"))
        blocks = -(-inputs // step["block"])
        codes = blocks * step["block"] * bits // 8
        zero_points = -(-blocks * bits // 8) if "zero_points" in matrix else 0
        return outputs * (codes + blocks * self._item + zero_points) + bias


class Operations:
    """A bundle's decode step on the GPU, ready to be replayed in parts."""

    def __init__(self, bundle: Bundle, context: int = CONTEXT, past: int = PROMPT) -> None:
        module = cuda.load()
        self._stream = module.Stream()
        self._device = module.CudaDevice(self._stream)
        dtype = executors.compute_dtype(bundle)
        limits = AskedLimits(max_length=context, max_pixels=28 * 28).for_bundle(bundle)
        self._decoder, self._cache = device_steps(bundle, limits, self._device, dtype)
        self._early = CudaSettings.from_environment().early
        model, weights = executors.step_graph(bundle, dtype)
        self._weights = DeviceWeights(self._device, model, weights)
        self._memory = self._program()
        geometry, buffers = bundle.geometry.decoder, self._decoder.buffers
        listed = LaunchList(self._memory, geometry, format_named(dtype).item_bytes, past)
        ProgramWriter(listed, self._weights, buffers, geometry, dtype).write(model)
        self.launches = listed.launches
        self._device.upload(buffers["past_length"], np.array([past], np.int64))
        noise = np.random.default_rng(0).standard_normal(geometry.hidden_size, np.float32)
        # Of a 16-bit format the upper halves of float32: bfloat16's, and small enough as float16's.
        noise = noise if dtype == "float32" else (noise.view(np.uint32) >> 16).astype(np.uint16)
        self._device.upload(buffers["inputs_embeds"], noise)
        self._other = [self._device.allocate(OTHER_BYTES) for _ in range(2)]
        self._run_once(self._of(self.launches))  # leaves numbers in all memory between the operations

    def microseconds(self, launches: list[Launch]) -> float:
        """Of one replay of these launches, one after the other: the median."""
        module, program = cuda.load(), self._of(launches)
        self._run_once(program)  # what a first run loads can't be recorded
        graph, start, end = module.Graph(), module.Event(timing=True), module.Event(timing=True)
        graph.begin(self._stream)
        try:
            program.run(1)
        except BaseException:
            graph.abandon()
            raise
        graph.end()

        def replay() -> float:
            target, source = (block.pointer for block in self._other)
            module.copy_on_device(target, source, OTHER_BYTES, self._stream)
            start.record(self._stream)
            graph.launch(self._stream)
            end.record(self._stream)
            end.synchronize()
            return end.milliseconds_since(start) * 1e3

        warm = time.perf_counter() + WARM_SECONDS
        replay()
        while time.perf_counter() < warm:
            replay()
        return statistics.median(replay() for _ in range(REPLAYS))

    def _program(self) -> _core.StepProgram:
        return _core.StepProgram(
            self._device,
            self._cache,
            _core.DeviceEngine(),  # there are no prompts
            self._cache.rows,
            self._decoder.buffers["past_length"],
            self._early,
        )

    def _of(self, launches: list[Launch]) -> _core.StepProgram:
        program = self._program()
        for launch in launches:
            launch.add(program)
        return program

    def _run_once(self, program: _core.StepProgram) -> None:
        program.run(1)
        self._device.synchronize()


def measure(operations: Operations, figures: Figures, bandwidth: float | None) -> None:
    """Two figures of each kind: microseconds a launch, and bytes a second; then of the whole program."""
    kinds: dict[str, list[Launch]] = {}
    for launch in operations.launches:
        kinds.setdefault(launch.kind, []).append(launch)
    total = 0.0
    for kind, launches in kinds.items():
        repeated = launches * -(-FEWEST // len(launches))
        each = operations.microseconds(repeated) / len(repeated)
        total += each * len(launches)
        _add(figures, f"{len(launches)} x {kind}", each, launches[0].read_bytes, bandwidth)
    figures.add("all of them, one kind after the other", total, "us")
    everything = sum(launch.read_bytes for launch in operations.launches)
    whole = operations.microseconds(operations.launches)
    _add(figures, f"program, {len(operations.launches)} launches", whole, everything, bandwidth)


def _add(figures: Figures, name: str, us: float, read_bytes: int, bandwidth: float | None) -> None:
    figures.add(name, us, "us", read_bytes / bandwidth * 1e6 if bandwidth else None)
    figures.add(f"{name}: read", read_bytes / us / 1e3, "GB/s", bandwidth and bandwidth / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=sorted(PUBLISHED))
    parser.add_argument("precision")
    parser.add_argument("--limits", type=Path, help="what bench/gpu_limits.py wrote")
    parser.add_argument("--work", type=Path, default=Path("out/gpu-bench"), help="where bundles are made")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    limits = read_limits(options.limits)
    bundle = published_bundle(options.size, options.precision, options.work, distinct=False)
    measure(Operations(bundle), Figures(options.output), limits.get("copy_bytes_per_second"))


if __name__ == "__main__":
    main()
