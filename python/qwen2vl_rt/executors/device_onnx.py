"""ONNX Runtime over a device's memory: graphs bound to fixed addresses, steps queued on one stream.

The provider is the GPU's in the cuda backend. With the CPU's provider and `_core.HostDevice` the same code
runs on a machine without a GPU, which is how it is tested there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import DECODER_GRAPH, EMBEDDING, PREFILL_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.cuda import LAST, LONGEST, PRESENT_LENGTH, lower_decoder, lower_vision
from qwen2vl_rt.plan import SessionLimits
from qwen2vl_rt.processing.device_frames import DevicePatches
from qwen2vl_rt.weights import embedding_dtype, map_weights

FLOAT_TYPES = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Provider:
    """Where ONNX Runtime runs the graphs."""

    name: str
    """An execution provider of ONNX Runtime."""
    memory: str
    """Its name for the memory that the project's device addresses are in: "cuda" or "cpu"."""
    options: dict[str, str] = field(default_factory=dict)
    """Provider options."""
    graphs: bool = False
    """Decode steps are recorded by the provider (enable_cuda_graph) and replayed."""


class DeviceSession:
    """A lowered graph loaded on a provider.

    Args:
        model: the graph, its large tensors external.
        weights: the external tensors by name; they are copied to the device.
        folder: where the model's external files are.
        provider: where it runs.
        graphs: let the provider record and replay runs that name a recording.
    """

    def __init__(
        self,
        model: ModelProto,
        weights: dict[str, np.ndarray],
        folder: Path,
        provider: Provider,
        graphs: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        external = [tensor for tensor in model.graph.initializer if tensor.name in weights]
        values = [_value(weights[tensor.name], tensor.data_type) for tensor in external]
        if external:
            options.add_external_initializers([tensor.name for tensor in external], values)
        settings = dict(provider.options) | ({"enable_cuda_graph": "1"} if graphs else {})
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(), options, providers=[(provider.name, settings)]
            )
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {model.graph.name} on {provider.name}: {error}"
            ) from error
        if self._session.get_providers()[0] != provider.name:
            raise BackendError(f"ONNX Runtime {ort.__version__} fell back from {provider.name} to the CPU.")
        self._memory = provider.memory
        self._element_types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self._element_types |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}

    def binding(self) -> ort.IOBinding:
        """A new set of bound inputs and outputs."""
        return self._session.io_binding()

    def has(self, name: str) -> bool:
        """Whether the graph has an input or output of this name."""
        return name in self._element_types

    def bind(
        self, binding: ort.IOBinding, name: str, shape: tuple[int, ...], pointer: int, *, out: bool
    ) -> None:
        """Bind device memory at `pointer` as the input or output `name`."""
        call = binding.bind_output if out else binding.bind_input
        call(name, self._memory, 0, self._element_types[name], shape, pointer)

    def run(self, binding: ort.IOBinding, recording: int | None = None) -> None:
        """Queue a run. `recording` numbers the provider's recording of this binding's runs, if it has any.

        Raises:
            BackendError: the engine failed.
        """
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", "-1" if recording is None else str(recording))
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {error}") from error


class DeviceDecoderEngine(_core.DeviceEngine):
    """Runs decoder steps on the fixed buffers of a `_core.DeviceDecoder`.

    Args:
        bundle: the model.
        decoder: whose buffers are bound.
        cache: the keys and values, updated in place.
        dtype: "float32", "bfloat16" or "float16", the cache's and the buffers'.
        provider: where ONNX Runtime runs.
        grouped: see `lowering.cuda.lower_decoder`.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoder: _core.DeviceDecoder,
        cache: _core.DeviceCache,
        dtype: str,
        provider: Provider,
        grouped: bool,
    ) -> None:
        super().__init__()
        self._buffers = decoder.buffers
        self._cache = cache
        self._geometry = bundle.geometry.decoder
        self._item = 4 if dtype == "float32" else 2
        # The portable attention's kernels copy lengths to the host, which can't be recorded.
        self._graphs = provider.graphs and grouped
        narrow = _narrow(bundle, dtype)
        self._answer = _load_decoder(bundle, DECODER_GRAPH, provider, narrow, grouped, self._graphs)
        self._prompt = self._answer
        if PREFILL_GRAPH in bundle.files:
            self._prompt = _load_decoder(bundle, PREFILL_GRAPH, provider, narrow, grouped, False)
        self._answer_bindings: dict[int, tuple[Any, np.ndarray]] = {}  # by rows
        self._prompt_binding: tuple[tuple[int, int], Any, np.ndarray] | None = None

    def enqueue(self, first_row: int, rows: int, tokens: int, longest: int, prompt: bool) -> None:
        """Queue one step: see csrc/device/device_engine.h."""
        if not prompt:
            if rows not in self._answer_bindings:
                self._answer_bindings[rows] = self._bind(self._answer, first_row, rows, 1)
            binding, given = self._answer_bindings[rows]
            given[...] = longest
            self._answer.run(binding, rows if self._graphs else None)
            return
        if self._prompt_binding is None or self._prompt_binding[0] != (first_row, tokens):
            self._prompt_binding = ((first_row, tokens), *self._bind(self._prompt, first_row, 1, tokens))
        _, binding, given = self._prompt_binding
        given[...] = longest
        self._prompt.run(binding)

    def _bind(self, session: DeviceSession, first_row: int, rows: int, tokens: int) -> tuple[Any, np.ndarray]:
        """A binding for steps of one shape, and the longest length that it hands over on the CPU."""
        decoder, at = self._geometry, self._buffers
        half = decoder.head_dim // 2
        binding = session.binding()
        shapes = {
            "inputs_embeds": (rows, tokens, decoder.hidden_size),
            "cos": (rows, tokens, half),
            "sin": (rows, tokens, half),
            "past_length": (rows,),
            "logit_rows": (rows, 1),
        }
        addresses = at | {LAST: at["last_position"], PRESENT_LENGTH: at["present_length"]}
        shapes |= {LAST: (rows,), PRESENT_LENGTH: (rows,)}
        for name, shape in shapes.items():
            if session.has(name):
                session.bind(binding, name, shape, addresses[name], out=False)
        longest = np.zeros((), np.int32)
        if session.has(LONGEST):
            binding.bind_input(LONGEST, "cpu", 0, np.int32, (), longest.ctypes.data)
        session.bind(binding, "logits", (rows, 1, decoder.vocab_size), at["logits"], out=True)
        cache = self._cache
        shape = (rows, decoder.kv_heads, cache.capacity, decoder.head_dim)
        skip = first_row * decoder.kv_heads * cache.capacity * decoder.head_dim * self._item
        for layer in range(decoder.layers):
            for part, pointer in (("k", cache.keys(layer)), ("v", cache.values(layer))):
                session.bind(binding, f"past_{part}.{layer}", shape, pointer + skip, out=False)
                session.bind(binding, f"present_{part}.{layer}", shape, pointer + skip, out=True)
        return binding, longest


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
        self._session = DeviceSession(model, weights, bundle.path, provider)
        self._device = device
        self._dtype = helper.tensor_dtype_to_np_dtype(FLOAT_TYPES[dtype])
        self._merged_patches = bundle.geometry.vision.merge_size**2
        self._hidden_size = bundle.geometry.decoder.hidden_size

    def encode(self, patches: np.ndarray | DevicePatches, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """Encode N equal-size pictures or frame pairs: patches [N, P, values], tables [P, head_dim / 2].

        Patches that are on the device already stay there.

        Returns:
            Visual embeddings, float32 [N, P / merge_size^2, hidden_size], on the CPU.
        """
        n, count, _ = patches.shape
        inputs = {
            name: np.broadcast_to(table, (n, *table.shape)) for name, table in (("cos", cos), ("sin", sin))
        }
        embeddings = np.empty((n, count // self._merged_patches, self._hidden_size), np.float32)
        binding, blocks = self._session.binding(), []
        if isinstance(patches, DevicePatches):
            self._session.bind(binding, "patches", patches.shape, patches.block.pointer, out=False)
        else:
            inputs["patches"] = patches
        for name, array in inputs.items():
            array = np.ascontiguousarray(array, self._dtype)
            blocks.append(self._device.allocate(array.nbytes))
            blocks[-1].upload(array.reshape(-1).view(np.uint8))
            self._session.bind(binding, name, array.shape, blocks[-1].pointer, out=False)
        blocks.append(self._device.allocate(embeddings.nbytes))
        self._session.bind(binding, "visual_embeddings", embeddings.shape, blocks[-1].pointer, out=True)
        self._session.run(binding)
        blocks[-1].download(embeddings)
        return embeddings


def device_decoder(
    bundle: Bundle,
    limits: SessionLimits,
    device: _core.Device,
    provider: Provider,
    grouped: bool | None = None,
) -> tuple[_core.DeviceDecoder, _core.DeviceCache]:
    """The bundle's decoder on a device, with its engine, and the cache for its rows.

    `grouped`: GroupQueryAttention; by default where its CUDA kernels exist, in 16 bit.
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
    grouped = dtype != "float32" if grouped is None else grouped
    steps.set_engine(DeviceDecoderEngine(bundle, steps, cache, dtype, provider, grouped))
    return steps, cache


def compute_dtype(bundle: Bundle) -> str:
    """What a GPU computes in: the bundle's own format; bfloat16 for quantized ones."""
    return {"fp32": "float32", "fp16": "float16"}.get(bundle.precision, "bfloat16")


def _narrow(bundle: Bundle, dtype: str) -> int | None:
    """The element type that a float32 graph is narrowed to, None where the graph has it already."""
    stored_float32 = bundle.precision == "fp32" or bundle.quantized
    return FLOAT_TYPES[dtype] if stored_float32 and dtype != "float32" else None


def _load_decoder(
    bundle: Bundle, file: str, provider: Provider, narrow: int | None, grouped: bool, graphs: bool
) -> DeviceSession:
    model = onnx.load(bundle.file(file), load_external_data=False)
    weights = map_weights(model, bundle.path)
    lower_decoder(model, weights, bundle.geometry, narrow=narrow, grouped=grouped)
    return DeviceSession(model, weights, bundle.path, provider, graphs)


def _value(array: np.ndarray, element_type: int) -> ort.OrtValue:
    """An array as ONNX Runtime takes it: bfloat16, which its NumPy doesn't know, as 16-bit words."""
    array = np.ascontiguousarray(array)
    if element_type == TensorProto.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element_type)
    return ort.OrtValue.ortvalue_from_numpy(array)
