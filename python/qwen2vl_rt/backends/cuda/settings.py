"""How decode steps run on a GPU: choices whose cost depends on the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qwen2vl_rt.errors import BackendError

# By CudaSettings' field: an environment variable, and its values, the default first.
CHOICES = {
    "compiled": ("QWEN2VL_CUDA_CALLS", ("c", "python")),
    "graphs": ("QWEN2VL_CUDA_GRAPHS", ("1", "0")),
    "grouped": ("QWEN2VL_CUDA_ATTENTION", ("grouped", "portable")),
    "own": ("QWEN2VL_CUDA_LAYERS", ("own", "onnxruntime")),
    "early": ("QWEN2VL_CUDA_STARTS", ("early", "in-turn")),
}


@dataclass(frozen=True)
class CudaSettings:
    """Choices that `make bench-gpu` measures, each against the other."""

    compiled: bool = True
    """ONNX Runtime is called through its C API, by `_cuda`; else through its Python binding."""
    graphs: bool = True
    """ONNX Runtime records decode steps as CUDA graphs (enable_cuda_graph) and replays them."""
    grouped: bool = True
    """GroupQueryAttention where it has kernels; else the portable attention, which can't be recorded."""
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
        chosen = {}
        for field, (name, values) in CHOICES.items():
            value = os.environ.get(name, values[0])
            if value not in values:
                raise BackendError(f"{name}={value}: choose {' or '.join(values)}")
            chosen[field] = value == values[0]
        return cls(**chosen)
