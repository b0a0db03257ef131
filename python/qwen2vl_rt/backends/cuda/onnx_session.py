"""ONNX Runtime sessions over a device's memory: graphs bound to fixed addresses, runs queued on one stream.

Two ways to call the same library: through its Python binding, and through its C API from the compiled half,
which needs neither Python nor its lock between two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda.settings import CudaSettings
from qwen2vl_rt.backends.device.steps import Tensor
from qwen2vl_rt.backends.onnx_failures import FAILURES
from qwen2vl_rt.errors import BackendError

# Of a provider that records nothing and needs no `_cuda`.
NO_GPU = CudaSettings(compiled=False, graphs=False)


@dataclass(frozen=True)
class Provider:
    """Where ONNX Runtime runs the graphs, and how it is called."""

    name: str
    """An execution provider of ONNX Runtime."""
    memory: str
    """Its name for the memory that the project's device addresses are in: "cuda" or "cpu"."""
    options: dict[str, str] = field(default_factory=dict)
    """Provider options."""
    settings: CudaSettings = NO_GPU
    """How it is called, and for what."""
    operators: bool = False
    """Its graphs take the operators of `_cuda`."""


class DeviceSession:
    """A lowered graph loaded on a provider: `open_session` makes one of the two kinds below."""

    def __init__(self, model: ModelProto) -> None:
        values = [*model.graph.input, *model.graph.output]
        self._element_types = {value.name: value.type.tensor_type.elem_type for value in values}

    def has(self, name: str) -> bool:
        """Whether the graph has an input or output of this name."""
        return name in self._element_types

    def bind(self, tensors: Sequence[Tensor], recording: int | None = None) -> Any:
        """What `run` takes. `recording` numbers the provider's recording of these runs, if it has any."""
        raise NotImplementedError

    def run(self, bound: Any) -> None:
        """Queue a run.

        Raises:
            BackendError: the engine failed.
        """
        raise NotImplementedError


def open_session(
    model: ModelProto, weights: dict[str, np.ndarray], folder: Path, provider: Provider, graphs: bool = False
) -> DeviceSession:
    """Load a graph.

    Args:
        model: the graph, its large tensors external.
        weights: the external tensors by name; they are copied to the device.
        folder: where the model's external files are.
        provider: where it runs.
        graphs: let the provider record and replay runs that name a recording.

    Raises:
        BackendError: ONNX Runtime can't load it there.
    """
    if graphs:
        provider = replace(provider, options=provider.options | {"enable_cuda_graph": "1"})
    kind = CompiledSession if provider.settings.compiled else PythonSession
    return kind(model, weights, folder, provider)


class PythonSession(DeviceSession):
    """A session behind ONNX Runtime's Python binding."""

    def __init__(
        self, model: ModelProto, weights: dict[str, np.ndarray], folder: Path, provider: Provider
    ) -> None:
        super().__init__(model)
        self._memory = provider.memory
        # The CUDA provider leaves its GPU the calling thread's, who gets its own back.
        self._on_gpu = partial(cuda.load().OnDevice, 0) if provider.memory == "cuda" else nullcontext
        options = ort.SessionOptions()
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        for name, value in _entries(folder).items():
            options.add_session_config_entry(name, value)
        if any(opset.domain == _core.OPERATOR_DOMAIN for opset in model.opset_import):
            options.register_custom_ops_library(cuda.load().__file__)
        external = [tensor for tensor in model.graph.initializer if tensor.name in weights]
        if external:
            values = [_value(weights[tensor.name], tensor.data_type) for tensor in external]
            options.add_external_initializers([tensor.name for tensor in external], values)
        try:
            with self._on_gpu():
                self.session = ort.InferenceSession(
                    model.SerializeToString(), options, providers=[(provider.name, provider.options)]
                )
        except (*FAILURES, ValueError) as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {model.graph.name} on {provider.name}: {error}"
            ) from error
        if self.session.get_providers()[0] != provider.name:
            raise BackendError(f"ONNX Runtime {ort.__version__} fell back from {provider.name} to the CPU.")

    def bind(
        self, tensors: Sequence[Tensor], recording: int | None = None
    ) -> tuple[ort.IOBinding, ort.RunOptions]:
        """See `DeviceSession.bind`."""
        binding, options = self.session.io_binding(), ort.RunOptions()
        for name, value in _run_entries(recording).items():
            options.add_run_config_entry(name, value)
        for name, shape, pointer, output, on_host in tensors:
            call = binding.bind_output if output else binding.bind_input
            memory = "cpu" if on_host else self._memory
            call(name, memory, 0, self._element_types[name], shape, pointer)
        return binding, options

    def run(self, bound: tuple[ort.IOBinding, ort.RunOptions]) -> None:
        """See `DeviceSession.run`."""
        try:
            with self._on_gpu():
                self.session.run_with_iobinding(*bound)
        except FAILURES as error:
            raise BackendError(f"ONNX Runtime failed: {error}") from error


class CompiledSession(DeviceSession):
    """A session behind ONNX Runtime's C API: `csrc/cuda/onnx_session.h`."""

    def __init__(
        self, model: ModelProto, weights: dict[str, np.ndarray], folder: Path, provider: Provider
    ) -> None:
        super().__init__(model)
        self._module = module = cuda.load()
        _hand_over_api(module)
        self._weights = {
            tensor.name: np.ascontiguousarray(weights[tensor.name])
            for tensor in model.graph.initializer
            if tensor.name in weights
        }
        tensors = [
            module.OnnxTensor(
                tensor.name,
                tensor.data_type,
                list(tensor.dims),
                self._weights[tensor.name].ctypes.data,
                self._weights[tensor.name].nbytes,
                on_host=True,
            )
            for tensor in model.graph.initializer
            if tensor.name in self._weights
        ]
        on_gpu = provider.memory == "cuda"
        self.session = module.OnnxSession(
            model.SerializeToString(), tensors, _entries(folder), provider.options if on_gpu else None
        )
        if on_gpu:  # they have been copied there
            self._weights.clear()

    def bind(self, tensors: Sequence[Tensor], recording: int | None = None) -> Any:
        """See `DeviceSession.bind`."""
        described = []
        for name, shape, pointer, output, on_host in tensors:
            element_type = self._element_types[name]
            size = math.prod(shape) * helper.tensor_dtype_to_np_dtype(element_type).itemsize
            described.append(
                self._module.OnnxTensor(name, element_type, list(shape), pointer, size, on_host, output)
            )
        return self.session.bind(described, _run_entries(recording))

    def run(self, bound: Any) -> None:
        """See `DeviceSession.run`."""
        self.session.run(bound)


def _hand_over_api(module: Any) -> None:
    """ONNX Runtime's extension module exports no C API, but gives it to libraries of operators."""
    ort.SessionOptions().register_custom_ops_library(module.__file__)


def _entries(folder: Path) -> dict[str, str]:
    return {
        "session.model_external_initializers_file_folder_path": str(folder),
        # The lowering has chosen the attention. In some versions this fusion reads a fourth input of any
        # RotaryEmbedding, which the standard operator with tables by token doesn't have.
        "optimization.disable_specified_optimizers": "GroupQueryAttentionFusion",
    }


def _run_entries(recording: int | None) -> dict[str, str]:
    return {
        "disable_synchronize_execution_providers": "1",
        "gpu_graph_id": "-1" if recording is None else str(recording),
    }


def _value(array: np.ndarray, element_type: int) -> ort.OrtValue:
    """An array as ONNX Runtime takes it: bfloat16, which its NumPy doesn't know, as 16-bit words."""
    array = np.ascontiguousarray(array)
    if element_type == TensorProto.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element_type)
    return ort.OrtValue.ortvalue_from_numpy(array)
