"""The tensorrt backend: engines over the device's buffers, decode steps recorded whole, replayed from C++.

The engine call itself is `tensorrt.runtime`; what is around it is the cuda backend's: `_core.DeviceDecoder`
makes a step's inputs, chooses tokens, and records [engine, sampling, next inputs] as one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen2vl_rt import _core
from qwen2vl_rt.backends.device.steps import StepTensors, Tensor, device_steps
from qwen2vl_rt.backends.device.vision import DeviceVisionTower
from qwen2vl_rt.backends.tensorrt.engines import EngineFile
from qwen2vl_rt.backends.tensorrt.find import EngineSet
from qwen2vl_rt.backends.tensorrt.runtime import ALIGNMENT, Engine, Execution
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.graph_format import INPUTS_EMBEDS, PAST_LENGTH, PATCHES, cached_keys, cached_values
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.session_limits import SessionLimits

# Opens an engine file on the device: `tensorrt.runtime.TensorRTEngine` with its edition and stream.
OpenEngine = Callable[[EngineFile], Engine]


@dataclass(frozen=True)
class Engines:
    """A bundle's engines on a device, and the scratch memory that they take turns in."""

    device: _core.Device
    vision: Engine
    prompt: Engine
    """The decoder for a prompt's tokens; the same as `answer` unless the bundle has one of its own."""
    answer: Engine
    scratch: _core.DeviceBlock
    dtype: str
    """Of inputs and cache: "float32", "bfloat16" or "float16"."""

    @staticmethod
    def open(chosen: EngineSet, device: _core.Device, open_engine: OpenEngine) -> Engines:
        """Open the files of `chosen`. Raises BackendError, MemoryLimitError."""
        opened = {graph: open_engine(file) for graph, file in chosen.files.items()}
        # One run at a time, on one stream: all of them can use the same scratch memory.
        scratch = device.allocate(max(1, *(engine.scratch_bytes for engine in opened.values())))
        return Engines(
            device,
            opened["vision"],
            opened.get("prefill", opened["decoder"]),
            opened["decoder"],
            scratch,
            opened["decoder"].description.number_format(INPUTS_EMBEDS).dtype,
        )

    def keep_kernels(self) -> None:
        """Write kernels that were compiled on this machine beside the engines: see `tensorrt.runtime`."""
        for engine in {id(engine): engine for engine in (self.vision, self.prompt, self.answer)}.values():
            engine.keep_kernels()

    def execution(self, engine: Engine, profile: str, *, fixed: bool) -> Execution:
        """A way through one of them: see `tensorrt.runtime.Engine`."""
        return engine.execution(profile, (self.scratch.pointer, self.scratch.bytes), fixed=fixed)


class TensorRTDecoder(_core.DeviceEngine):
    """Runs decoder steps on the fixed buffers of a `_core.DeviceDecoder`.

    Args:
        bundle: the model.
        engines: opened.
        decoder: whose buffers are bound.
        cache: the keys and values: updated by the engine in place, or, in the form without operators for
            that, by the project's own kernel behind it.
    """

    def __init__(
        self, bundle: Bundle, engines: Engines, decoder: _core.DeviceDecoder, cache: _core.DeviceCache
    ) -> None:
        super().__init__()
        self._geometry = bundle.geometry.decoder
        self._engines = engines
        self._steps = StepTensors(bundle, decoder, cache, engines.dtype)
        self._past_length = decoder.buffers[PAST_LENGTH]
        self._cache = cache
        self._new: _core.DeviceBlock | None = None  # [layers, keys and values, rows * tokens * kv_heads, D]
        if not engines.answer.description.shared:
            geometry, limits = self._geometry, cache.rows
            tokens = max(limits, _largest_chunk(engines.prompt))
            position_bytes = geometry.kv_heads * geometry.head_dim * format_named(engines.dtype).item_bytes
            layer_bytes = tokens * position_bytes
            self._new_bytes = math.ceil(layer_bytes / ALIGNMENT) * ALIGNMENT
            self._new = engines.device.allocate(2 * geometry.layers * self._new_bytes)
        # Shapes vary from chunk to chunk. It is never recorded.
        self._prompt = engines.execution(engines.prompt, "prefill", fixed=False)
        self._prompt_shape: tuple[int, int] | None = None
        # One for each number of rows: a recording stays valid only while its context is left alone.
        self._answers: dict[int, Execution] = {}

    def enqueue(self, first_row: int, rows: int, tokens: int, longest: int, prompt: bool) -> None:
        """Queue one step: see csrc/device/device_engine.h."""
        if prompt:
            if self._prompt_shape != (first_row, tokens):
                self._prompt.bind(self._tensors(self._engines.prompt, first_row, 1, tokens))
                self._prompt_shape = (first_row, tokens)
            self._prompt.enqueue()
        else:
            self._answer(rows).enqueue()
        if self._new is not None:
            self._write_cache(first_row, rows, tokens)

    def recordable(self) -> bool:
        """Whether decode steps can be recorded as CUDA graphs."""
        return self._answer(1).capturable()

    def _answer(self, rows: int) -> Execution:
        if rows not in self._answers:
            execution = self._engines.execution(self._engines.answer, "decode", fixed=True)
            execution.bind(self._tensors(self._engines.answer, 0, rows, 1))
            self._answers[rows] = execution
        return self._answers[rows]

    def _tensors(self, engine: Engine, first_row: int, rows: int, tokens: int) -> list[Tensor]:
        tensors = self._steps.of(engine, first_row, rows, tokens)
        if self._new is not None:
            geometry = self._geometry
            shape = (rows, geometry.kv_heads, tokens, geometry.head_dim)
            for layer in range(geometry.layers):
                keys, values = self._new_pointers(layer)
                tensors.append(Tensor(cached_keys(layer).new, shape, keys, output=True))
                tensors.append(Tensor(cached_values(layer).new, shape, values, output=True))
        return tensors

    def _new_pointers(self, layer: int) -> tuple[int, int]:
        """Where the engine writes a step's keys and its values."""
        keys = self._new.pointer + 2 * layer * self._new_bytes
        return keys, keys + self._new_bytes

    def _write_cache(self, first_row: int, rows: int, tokens: int) -> None:
        for layer in range(self._geometry.layers):
            self._cache.write(
                self._engines.device,
                layer,
                first_row,
                rows,
                tokens,
                self._past_length,
                *self._new_pointers(layer),
            )


class TensorRTVision(DeviceVisionTower):
    """The vision tower's engine: one picture of any size, or several small frames, a run."""

    def __init__(self, bundle: Bundle, engines: Engines) -> None:
        engine = engines.vision
        super().__init__(engines.device, bundle.geometry, engine.description.number_format(PATCHES).numpy)
        self._picture = engines.execution(engine, "picture", fixed=False)
        self._frames = engines.execution(engine, "frames", fixed=False)
        most = engine.description.key.profile("frames").largest[PATCHES]
        self._most_frames, self._most_patches, _ = most

    def runs(self, n: int, count: int) -> list[tuple[int, int]]:
        """See `DeviceVisionTower`: no more in a run than the engine takes at once."""
        step = self._most_frames if count <= self._most_patches else 1
        return [(begin, min(begin + step, n)) for begin in range(0, n, step)]

    def enqueue(self, tensors: Sequence[Tensor]) -> None:
        """See `DeviceVisionTower`."""
        pictures = next(tensor.shape[0] for tensor in tensors if tensor.name == PATCHES)
        execution = self._picture if pictures == 1 else self._frames
        execution.bind(tensors)
        execution.enqueue()


def tensorrt_decoder(
    bundle: Bundle, limits: SessionLimits, engines: Engines
) -> tuple[_core.DeviceDecoder, _core.DeviceCache, TensorRTDecoder]:
    """The bundle's decoder on a device, the cache for its rows, and the engine that it runs."""
    steps, cache = device_steps(bundle, limits, engines.device, engines.dtype)
    engine = TensorRTDecoder(bundle, engines, steps, cache)
    steps.set_engine(engine)
    return steps, cache, engine


def _largest_chunk(engine: Engine) -> int:
    _, tokens, _ = engine.description.key.profile("prefill").largest[INPUTS_EMBEDS]
    return tokens
