"""The decoder and the vision tower in ONNX Runtime over a device's memory.

The provider is the GPU's in the cuda backend. With the CPU's provider and `_core.HostDevice` the same code
runs on a machine without a GPU, which is how it is tested there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda.onnx_session import (
    CompiledSession,
    DeviceSession,
    Provider,
    open_session,
)
from qwen2vl_rt.backends.cuda.program import DeviceWeights, ProgramWriter
from qwen2vl_rt.backends.device.steps import StepTensors, Tensor, device_steps
from qwen2vl_rt.backends.device.vision import DeviceVisionTower
from qwen2vl_rt.bundle import DECODER_GRAPH, PREFILL_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.graph_format import PAST_LENGTH
from qwen2vl_rt.lowering.cuda import lower_decoder, lower_vision
from qwen2vl_rt.lowering.weight_inputs import to_weight_inputs
from qwen2vl_rt.number_formats import FLOAT32, format_named, format_of_graphs, format_on_a_gpu
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import load_graph

# A step's bindings to the session that runs it: of its first row, rows, tokens, whether they are a prompt's,
# and the host address of the number `longest`.
Bind = Callable[[int, int, int, bool, int], Any]


class DeviceDecoderEngine(_core.DeviceEngine):
    """Runs decoder steps through ONNX Runtime's Python binding.

    The compiled `OnnxEngine` needs neither Python nor its lock between two tokens, but `_cuda` and an ONNX
    Runtime whose C API it knows.
    """

    def __init__(self, answer: DeviceSession, prompt: DeviceSession, bind: Bind) -> None:
        super().__init__()
        self._answer, self._prompt = answer, prompt
        self._bind = bind
        self._longest = np.zeros((), np.int32)
        self._answer_steps: dict[int, Any] = {}  # by rows
        self._prompt_steps: dict[tuple[int, int], Any] = {}  # by first row and tokens

    def enqueue(self, first_row: int, rows: int, tokens: int, longest: int, prompt: bool) -> None:
        """Queue one step: see csrc/device/device_engine.h."""
        self._longest[...] = longest
        step = first_row, rows, tokens, prompt, self._longest.ctypes.data
        if not prompt:
            if rows not in self._answer_steps:
                self._answer_steps[rows] = self._bind(*step)
            self._answer.run(self._answer_steps[rows])
            return
        shape = (first_row, tokens)
        if shape not in self._prompt_steps:
            if len(self._prompt_steps) == _core.MOST_PROMPT_SHAPES:
                self._prompt_steps.clear()
            self._prompt_steps[shape] = self._bind(*step)
        self._prompt.run(self._prompt_steps[shape])


def decoder_engine(
    bundle: Bundle,
    decoder: _core.DeviceDecoder,
    cache: _core.DeviceCache,
    dtype: str,
    provider: Provider,
    grouped: bool,
) -> _core.DeviceEngine:
    """The engine of a decoder whose buffers and cache exist, all of it in ONNX Runtime.

    `grouped`: see `lowering.cuda`.
    """
    # The portable attention's kernels copy lengths to the host, which can't be recorded.
    recorded = provider.settings.graphs and grouped
    lowering = {"narrow": _narrow(bundle, dtype), "grouped": grouped}
    model, weights = _lowered(bundle, DECODER_GRAPH, **lowering)
    answer = prompt = open_session(model, weights, bundle.path, provider, recorded)
    if PREFILL_GRAPH in bundle.files:
        model, weights = _lowered(bundle, PREFILL_GRAPH, **lowering)
        prompt = open_session(model, weights, bundle.path, provider)
    return _session_engine(answer, prompt, StepTensors(bundle, decoder, cache, dtype), recorded)


def program_engine(
    bundle: Bundle,
    decoder: _core.DeviceDecoder,
    cache: _core.DeviceCache,
    device: _core.Device,
    dtype: str,
    provider: Provider,
    grouped: bool,
) -> _core.DeviceEngine:
    """The same with decode steps of the project's own kernels, on the weights that prompts use, too."""
    step, weights = step_graph(bundle, dtype)
    on_device = DeviceWeights(device, step, weights)
    tensors = StepTensors(bundle, decoder, cache, dtype)
    lowering = {"narrow": _narrow(bundle, dtype), "grouped": grouped, "own_products": provider.operators}
    if provider.operators and PREFILL_GRAPH not in bundle.files:
        prompt = _copy(step) if grouped else _lowered(bundle, DECODER_GRAPH, **lowering)[0]
        to_weight_inputs(prompt, weights, on_device.shapes)
        tensors.constant = on_device.tensors()
    else:  # prompts have weights of their own, or an engine that takes no operators
        file = PREFILL_GRAPH if PREFILL_GRAPH in bundle.files else DECODER_GRAPH
        prompt, weights = _lowered(bundle, file, **lowering)
    session = open_session(prompt, weights, bundle.path, provider)
    prompts = _session_engine(session, session, tensors, recorded=False)
    past_length = decoder.buffers[PAST_LENGTH]
    program = _core.StepProgram(device, cache, prompts, cache.rows, past_length, provider.settings.early)
    ProgramWriter(program, on_device, decoder.buffers, bundle.geometry.decoder, dtype).write(step)
    program.weights = on_device  # as long as the program
    return program


def step_graph(bundle: Bundle, dtype: str) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """The graph that a decode step of the project's own kernels is written from, and its external weights."""
    return _lowered(bundle, DECODER_GRAPH, narrow=_narrow(bundle, dtype), own_products=True)


def _session_engine(
    answer: DeviceSession, prompt: DeviceSession, tensors: StepTensors, recorded: bool
) -> _core.DeviceEngine:
    """`recorded`: `answer` records its runs, one recording for each number of rows, and replays them."""

    def bind(first_row: int, rows: int, tokens: int, is_prompt: bool, longest: int) -> Any:
        session = prompt if is_prompt else answer
        recording = rows if recorded and not is_prompt else None
        return session.bind(tensors.of(session, first_row, rows, tokens, longest), recording)

    if isinstance(answer, CompiledSession) and isinstance(prompt, CompiledSession):
        return cuda.load().OnnxEngine(answer.session, prompt.session, bind)
    return DeviceDecoderEngine(answer, prompt, bind)


class DeviceVision(DeviceVisionTower):
    """The vision tower in ONNX Runtime.

    Args:
        bundle: the model.
        device: whose memory holds patches and embeddings.
        dtype: "float32", "bfloat16" or "float16", what it computes in.
        provider: where ONNX Runtime runs.
    """

    def __init__(self, bundle: Bundle, device: _core.Device, dtype: str, provider: Provider) -> None:
        super().__init__(device, bundle.geometry, format_named(dtype).numpy)
        model, weights = load_graph(bundle, VISION_GRAPH)
        lower_vision(model, weights, bundle.geometry, narrow=_narrow(bundle, dtype))
        self._session = open_session(model, weights, bundle.path, provider)
        self._session.device = device  # whose stream the provider's handles name: it goes after them

    def enqueue(self, tensors: Sequence[Tensor]) -> None:
        """Queue a run: see `DeviceVisionTower`."""
        self._session.run(self._session.bind(tensors))


def device_decoder(
    bundle: Bundle, limits: SessionLimits, device: _core.Device, provider: Provider
) -> tuple[_core.DeviceDecoder, _core.DeviceCache]:
    """The bundle's decoder on a device, with its engine, and the cache for its rows.

    Of the provider's settings it takes what there is: GroupQueryAttention's CUDA kernels are 16 bit, and the
    project's own take heads of some sizes.
    """
    dtype, settings = compute_dtype(bundle), provider.settings
    steps, cache = device_steps(bundle, limits, device, dtype)
    grouped = settings.grouped and (dtype != "float32" or provider.memory == "cpu")
    if settings.own and _core.decode_attention_fits(bundle.geometry.decoder.head_dim):
        engine = program_engine(bundle, steps, cache, device, dtype, provider, grouped)
    else:
        engine = decoder_engine(bundle, steps, cache, dtype, provider, grouped)
    steps.set_engine(engine)
    return steps, cache


def compute_dtype(bundle: Bundle) -> str:
    """The name of what a GPU computes the bundle in."""
    return format_on_a_gpu(bundle.precision).dtype


def _narrow(bundle: Bundle, dtype: str) -> int | None:
    """The element type that a float32 graph is narrowed to, None where the graph has it already."""
    stored, wanted = format_of_graphs(bundle.precision), format_named(dtype)
    return wanted.element_type if stored is FLOAT32 and wanted is not FLOAT32 else None


def _lowered(bundle: Bundle, file: str, **lowering: Any) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A decoder's graph, and its external weights by name."""
    model, weights = load_graph(bundle, file)
    lower_decoder(model, weights, bundle.geometry, **lowering)
    return model, weights


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
