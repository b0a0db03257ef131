"""The decoder and the vision tower in ONNX Runtime over a device's memory.

The provider is the GPU's in the cuda backend. With the CPU's provider and `_core.HostDevice` the same code
runs on a machine without a GPU, which is how it is tested there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from qwen2vl_rt import _core, cuda
from qwen2vl_rt.bundle import DECODER_GRAPH, EMBEDDING, PREFILL_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.executors.device_session import (
    CompiledSession,
    DeviceSession,
    Provider,
    Tensor,
    open_session,
)
from qwen2vl_rt.lowering.cuda import LAST, LONGEST, PRESENT_LENGTH, lower_decoder, lower_vision
from qwen2vl_rt.plan import SessionLimits
from qwen2vl_rt.processing.device_frames import DevicePatches
from qwen2vl_rt.weights import embedding_dtype, map_weights

FLOAT_TYPES = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}


class StepTensors:
    """What a decoder step reads and writes: the fixed buffers of a `_core.DeviceDecoder` and its cache.

    Args:
        bundle: the model.
        decoder: whose buffers are bound.
        cache: the keys and values, updated in place.
        dtype: "float32", "bfloat16" or "float16", the cache's and the buffers'.
    """

    def __init__(
        self, bundle: Bundle, decoder: _core.DeviceDecoder, cache: _core.DeviceCache, dtype: str
    ) -> None:
        self._buffers = decoder.buffers
        self._cache = cache
        self._geometry = bundle.geometry.decoder
        self._item = 4 if dtype == "float32" else 2

    def of(
        self, session: DeviceSession, first_row: int, rows: int, tokens: int, longest: int
    ) -> list[Tensor]:
        """Of a step with B = `rows` and T = `tokens`; `longest`: the host address of the longest length."""
        decoder, at, cache = self._geometry, self._buffers, self._cache
        half = decoder.head_dim // 2
        inputs = [
            Tensor("inputs_embeds", (rows, tokens, decoder.hidden_size), at["inputs_embeds"]),
            Tensor("cos", (rows, tokens, half), at["cos"]),
            Tensor("sin", (rows, tokens, half), at["sin"]),
            Tensor("past_length", (rows,), at["past_length"]),
            Tensor("logit_rows", (rows, 1), at["logit_rows"]),
            Tensor(LAST, (rows,), at["last_position"]),
            Tensor(PRESENT_LENGTH, (rows,), at["present_length"]),
            Tensor(LONGEST, (), longest, on_host=True),
        ]
        tensors = [tensor for tensor in inputs if session.has(tensor.name)]
        tensors.append(Tensor("logits", (rows, 1, decoder.vocab_size), at["logits"], output=True))
        shape = (rows, decoder.kv_heads, cache.capacity, decoder.head_dim)
        skip = first_row * decoder.kv_heads * cache.capacity * decoder.head_dim * self._item
        for layer in range(decoder.layers):
            for part, pointer in (("k", cache.keys(layer)), ("v", cache.values(layer))):
                tensors.append(Tensor(f"past_{part}.{layer}", shape, pointer + skip))
                tensors.append(Tensor(f"present_{part}.{layer}", shape, pointer + skip, output=True))
        return tensors


class DeviceDecoderEngine(_core.DeviceEngine):
    """Runs decoder steps through ONNX Runtime's Python binding. `recorded`: `answer` records its runs."""

    def __init__(
        self, answer: DeviceSession, prompt: DeviceSession, tensors: StepTensors, recorded: bool
    ) -> None:
        super().__init__()
        self._answer, self._prompt = answer, prompt
        self._tensors = tensors
        self._recorded = recorded
        self._longest = np.zeros((), np.int32)
        self._answer_steps: dict[int, Any] = {}  # by rows
        self._prompt_step: tuple[tuple[int, int], Any] | None = None  # of the newest shape

    def enqueue(self, first_row: int, rows: int, tokens: int, longest: int, prompt: bool) -> None:
        """Queue one step: see csrc/device/device_engine.h."""
        self._longest[...] = longest
        if not prompt:
            if rows not in self._answer_steps:
                recording = rows if self._recorded else None
                self._answer_steps[rows] = self._bind(self._answer, first_row, rows, tokens, recording)
            self._answer.run(self._answer_steps[rows])
            return
        if self._prompt_step is None or self._prompt_step[0] != (first_row, tokens):
            self._prompt_step = (first_row, tokens), self._bind(self._prompt, first_row, rows, tokens, None)
        self._prompt.run(self._prompt_step[1])

    def _bind(
        self, session: DeviceSession, first_row: int, rows: int, tokens: int, recording: int | None
    ) -> Any:
        tensors = self._tensors.of(session, first_row, rows, tokens, self._longest.ctypes.data)
        return session.bind(tensors, recording)


def decoder_engine(
    bundle: Bundle,
    decoder: _core.DeviceDecoder,
    cache: _core.DeviceCache,
    dtype: str,
    provider: Provider,
    grouped: bool,
) -> _core.DeviceEngine:
    """The engine of a decoder whose buffers and cache exist; `grouped`: see `lowering.cuda.lower_decoder`."""
    # The portable attention's kernels copy lengths to the host, which can't be recorded.
    recorded = provider.graphs and grouped
    narrow = _narrow(bundle, dtype)
    answer = prompt = _open_decoder(bundle, DECODER_GRAPH, provider, narrow, grouped, recorded)
    if PREFILL_GRAPH in bundle.files:
        prompt = _open_decoder(bundle, PREFILL_GRAPH, provider, narrow, grouped, False)
    tensors = StepTensors(bundle, decoder, cache, dtype)
    if not (isinstance(answer, CompiledSession) and isinstance(prompt, CompiledSession)):
        return DeviceDecoderEngine(answer, prompt, tensors, recorded)

    def step(first_row: int, rows: int, tokens: int, is_prompt: bool, longest: int) -> list[Any]:
        session = prompt if is_prompt else answer
        return session.tensors(tensors.of(session, first_row, rows, tokens, longest))

    return cuda.load().OnnxEngine(answer.session, prompt.session, step, recorded)


@dataclass(frozen=True, eq=False)
class DeviceEmbeddings:
    """Visual embeddings of pictures of one size, float32 [count, tokens, width], in a device's memory."""

    block: _core.DeviceBlock
    shape: tuple[int, int, int]

    def visual(self, begin: int, end: int) -> _core.DeviceVisual:
        """Pictures (or frame pairs of one video) `begin` to `end`, as a request takes them."""
        _, tokens, width = self.shape
        return _core.DeviceVisual(self.block, begin * tokens * width * 4, (end - begin) * tokens, width)

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits."""
        embeddings = np.empty(self.shape, np.float32)
        self.block.download(embeddings)
        return embeddings


class DeviceVision:
    """Runs the vision tower on a device: see `executors.cpu.CpuVision`.

    Args:
        bundle: the model.
        device: whose memory holds patches and embeddings.
        dtype: "float32", "bfloat16" or "float16", what it computes in.
        provider: where ONNX Runtime runs.
    """

    def __init__(self, bundle: Bundle, device: _core.Device, dtype: str, provider: Provider) -> None:
        model = onnx.load(bundle.file(VISION_GRAPH), load_external_data=False)
        weights = map_weights(model, bundle.path)
        lower_vision(model, weights, bundle.geometry, narrow=_narrow(bundle, dtype))
        self._session = open_session(model, weights, bundle.path, provider)
        self._device = device
        self._dtype = helper.tensor_dtype_to_np_dtype(FLOAT_TYPES[dtype])
        self._merged_patches = bundle.geometry.vision.merge_size**2
        self._hidden_size = bundle.geometry.decoder.hidden_size
        self._inputs: dict[str, _core.DeviceBlock] = {}  # kept from call to call, and grown

    def encode(
        self, patches: np.ndarray | DevicePatches, cos: np.ndarray, sin: np.ndarray
    ) -> DeviceEmbeddings:
        """Encode N equal-size pictures or frame pairs: patches [N, P, values], tables [P, head_dim / 2].

        Patches that are on the device already stay there; the embeddings do, too. Returns when the work is
        queued: what is queued behind it may read them.
        """
        n, count, _ = patches.shape
        tensors = []
        if isinstance(patches, DevicePatches):
            tensors.append(Tensor("patches", patches.shape, patches.block.pointer))
        else:
            tensors.append(self._upload("patches", patches))
        for name, table in (("cos", cos), ("sin", sin)):
            tensors.append(self._upload(name, np.broadcast_to(table, (n, *table.shape))))
        shape = (n, count // self._merged_patches, self._hidden_size)
        embeddings = self._device.allocate(4 * n * shape[1] * shape[2])
        tensors.append(Tensor("visual_embeddings", shape, embeddings.pointer, output=True))
        self._session.run(self._session.bind(tensors))
        return DeviceEmbeddings(embeddings, shape)

    def _upload(self, name: str, array: np.ndarray) -> Tensor:
        array = np.ascontiguousarray(array, self._dtype)
        if name not in self._inputs or self._inputs[name].bytes < array.nbytes:
            self._inputs[name] = self._device.allocate(array.nbytes)
        self._inputs[name].upload(array.reshape(-1).view(np.uint8))
        return Tensor(name, array.shape, self._inputs[name].pointer)


def device_decoder(
    bundle: Bundle,
    limits: SessionLimits,
    device: _core.Device,
    provider: Provider,
    grouped: bool | None = None,
) -> tuple[_core.DeviceDecoder, _core.DeviceCache]:
    """The bundle's decoder on a device, with its engine, and the cache for its rows.

    `grouped`: GroupQueryAttention; by default what the provider says, in 16 bit.
    """
    decoder, dtype = bundle.geometry.decoder, compute_dtype(bundle)
    cache = _core.DeviceCache(
        device, decoder.layers, limits.max_batch, decoder.kv_heads, limits.max_length, decoder.head_dim, dtype
    )
    table = _core.EmbeddingTable(
        str(bundle.file(EMBEDDING)), decoder.vocab_size, decoder.hidden_size, embedding_dtype(bundle)
    )
    rope = _core.RopeTable(decoder.head_dim, decoder.rope_theta, decoder.mrope_section)
    steps = _core.DeviceDecoder(device, cache, table, rope, limits.prefill_chunk, dtype)
    grouped = provider.grouped and dtype != "float32" if grouped is None else grouped
    steps.set_engine(decoder_engine(bundle, steps, cache, dtype, provider, grouped))
    return steps, cache


def compute_dtype(bundle: Bundle) -> str:
    """What a GPU computes in: the bundle's own format; bfloat16 for quantized ones."""
    return {"fp32": "float32", "fp16": "float16"}.get(bundle.precision, "bfloat16")


def _narrow(bundle: Bundle, dtype: str) -> int | None:
    """The element type that a float32 graph is narrowed to, None where the graph has it already."""
    stored_float32 = bundle.precision == "fp32" or bundle.quantized
    return FLOAT_TYPES[dtype] if stored_float32 and dtype != "float32" else None


def _open_decoder(
    bundle: Bundle, file: str, provider: Provider, narrow: int | None, grouped: bool, graphs: bool
) -> DeviceSession:
    model = onnx.load(bundle.file(file), load_external_data=False)
    weights = map_weights(model, bundle.path)
    lower_decoder(model, weights, bundle.geometry, narrow=narrow, grouped=grouped)
    return open_session(model, weights, bundle.path, provider, graphs)
