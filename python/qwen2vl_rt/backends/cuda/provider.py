"""ONNX Runtime's CUDA provider, on a stream of the project's own."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cuda.libraries import load_cuda_libraries
from qwen2vl_rt.backends.cuda.onnx_session import Provider
from qwen2vl_rt.backends.cuda.settings import CudaSettings

# Memory grows by what is asked for, not by doubling: the plan counts bytes. float32 products stay float32:
# tf32, the default, keeps ten bits of the mantissa.
OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}


def cuda_device(settings: CudaSettings | None = None) -> tuple[_core.Device, Provider]:
    """The GPU as a device with a stream of its own, and ONNX Runtime's provider on that stream."""
    module = cuda.load()
    stream = module.Stream()
    return module.CudaDevice(stream), cuda_provider(stream, settings or CudaSettings.from_environment())


def cuda_provider(stream: Any, settings: CudaSettings) -> Provider:
    """ONNX Runtime's provider on a stream of `_cuda`, the libraries that it is linked against loaded."""
    built_for = getattr(ort, "cuda_version", None) or cuda.status().toolkit or "13"
    load_cuda_libraries(int(built_for.split(".")[0]))
    options = OPTIONS | {"device_id": str(stream.device), "user_compute_stream": str(stream.handle)}
    return Provider("CUDAExecutionProvider", "cuda", options, settings, operators=True)
