"""The cuda backend: ONNX Runtime on an NVIDIA GPU, everything between two tokens on the device."""

from __future__ import annotations

import onnxruntime as ort

from qwen2vl_rt import _core, cuda
from qwen2vl_rt.executors.cuda_libraries import load_cuda_libraries
from qwen2vl_rt.executors.device_onnx import Provider
from qwen2vl_rt.processing.device_frames import DeviceFrames

# Memory grows by what is asked for, not by doubling: the plan counts bytes. float32 products stay float32:
# tf32, the default, keeps ten bits of the mantissa.
OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}


def cuda_frames(dtype: str, device: int = 0) -> DeviceFrames:
    """What prepares frames on the GPU, on a stream of its own: the session's may be recording."""
    module = cuda.load()
    stream = module.Stream(device)
    return DeviceFrames(module.CudaDevice(stream), dtype, stream.handle)


def cuda_device(device: int = 0) -> tuple[_core.Device, Provider]:
    """The GPU as a device with a stream of its own, and ONNX Runtime's provider on that stream."""
    module = cuda.load()
    built_for = getattr(ort, "cuda_version", None) or cuda.status().toolkit or "13"
    load_cuda_libraries(int(built_for.split(".")[0]))
    stream = module.Stream(device)
    options = OPTIONS | {"device_id": str(device), "user_compute_stream": str(stream.handle)}
    return module.CudaDevice(stream), Provider("CUDAExecutionProvider", "cuda", options, graphs=True)
