"""The cuda backend: ONNX Runtime on an NVIDIA GPU, everything between two tokens on the device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from qwen2vl_rt import _core, cuda
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.executors.cuda_libraries import load_cuda_libraries
from qwen2vl_rt.executors.device_session import Provider

# Memory grows by what is asked for, not by doubling: the plan counts bytes. float32 products stay float32:
# tf32, the default, keeps ten bits of the mantissa.
OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}


# Environment variables, in the order of CudaSettings' fields, and their values, the default first.
CHOICES = {
    "QWEN2VL_CUDA_CALLS": ("c", "python"),
    "QWEN2VL_CUDA_GRAPHS": ("1", "0"),
    "QWEN2VL_CUDA_ATTENTION": ("grouped", "portable"),
    "QWEN2VL_CUDA_LAYERS": ("own", "onnxruntime"),
    "QWEN2VL_CUDA_STARTS": ("early", "in-turn"),
}


@dataclass(frozen=True)
class CudaSettings:
    """Choices whose cost depends on the machine: `make bench-gpu` measures each against the other."""

    compiled: bool = True
    """ONNX Runtime is called through its C API; else through its Python binding."""
    graphs: bool = True
    """ONNX Runtime records decode steps as CUDA graphs and replays them."""
    grouped: bool = True
    """16-bit decoders use GroupQueryAttention; else the portable attention, which can't be recorded."""
    own: bool = True
    """Decode steps, and the layers of prompts, are the project's own kernels; else ONNX Runtime's."""
    early: bool = True
    """Of these kernels: each may start before the one in front of it is done; else when it is."""

    @classmethod
    def from_environment(cls) -> CudaSettings:
        """The defaults, and what CHOICES in the environment change in them.

        Raises:
            BackendError: another value.
        """
        chosen = []
        for name, values in CHOICES.items():
            value = os.environ.get(name, values[0])
            if value not in values:
                raise BackendError(f"{name}={value}: choose {' or '.join(values)}")
            chosen.append(value == values[0])
        return cls(*chosen)


def cuda_device(device: int = 0, settings: CudaSettings | None = None) -> tuple[_core.Device, Provider]:
    """The GPU as a device with a stream of its own, and ONNX Runtime's provider on that stream."""
    module = cuda.load()
    stream = module.Stream(device)
    return module.CudaDevice(stream), cuda_provider(stream, settings or CudaSettings.from_environment())


def cuda_provider(stream: Any, settings: CudaSettings) -> Provider:
    """ONNX Runtime's provider on a stream of `_cuda`, the libraries that it is linked against loaded."""
    built_for = getattr(ort, "cuda_version", None) or cuda.status().toolkit or "13"
    load_cuda_libraries(int(built_for.split(".")[0]))
    options = OPTIONS | {"device_id": str(stream.device), "user_compute_stream": str(stream.handle)}
    return Provider(
        "CUDAExecutionProvider",
        "cuda",
        options,
        settings.graphs,
        settings.compiled,
        settings.grouped,
        settings.own,
        settings.early,
        operators=True,
    )
