"""Frames prepared on the GPU, whichever engine reads them."""

from __future__ import annotations

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.processing.device_frames import DeviceFrames


def cuda_frames(dtype: str) -> DeviceFrames:
    """What prepares frames on the GPU, on a stream of its own: the session's may be recording."""
    module = cuda.load()
    stream = module.Stream()
    return DeviceFrames(module.CudaDevice(stream), dtype, stream.handle)
