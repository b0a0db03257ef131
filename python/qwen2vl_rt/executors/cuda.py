"""The cuda backend: ONNX Runtime on an NVIDIA GPU, everything between two tokens on the device."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from qwen2vl_rt import _core, cuda
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.executors.cuda_frames import cuda_frames
from qwen2vl_rt.executors.cuda_libraries import load_cuda_libraries
from qwen2vl_rt.executors.cuda_settings import CudaSettings
from qwen2vl_rt.executors.device_onnx import DeviceVision, compute_dtype, device_decoder
from qwen2vl_rt.executors.device_session import Provider
from qwen2vl_rt.executors.opened import Opened
from qwen2vl_rt.session_limits import SessionLimits

# Memory grows by what is asked for, not by doubling: the plan counts bytes. float32 products stay float32:
# tf32, the default, keeps ten bits of the mantissa.
OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}


def open_cuda(bundle: Bundle, limits: SessionLimits) -> Opened:
    """A bundle's executors on the GPU. Raises BackendError."""
    device, provider = cuda_device()
    dtype = compute_dtype(bundle)
    # The largest graph first: while a quantized one loads, its weights are in memory twice.
    decoder = device_decoder(bundle, limits, device, provider)[0]
    vision = DeviceVision(bundle, device, dtype, provider)
    return Opened(decoder, vision, device=device, frames=cuda_frames(dtype))


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
