"""The cuda backend: ONNX Runtime on an NVIDIA GPU, everything between two tokens on the device."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.backend import Backend, Opened
from qwen2vl_rt.backends.cuda.plan import plan_cuda
from qwen2vl_rt.backends.device.memory import used_device_memory
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.plan import MemoryPlan
from qwen2vl_rt.session_limits import SessionLimits

INSTALL = "pip install 'qwen2vl_rt[cuda]'"


@dataclass(frozen=True)
class CudaBackend(Backend):
    """Plans and opens bundles on the first GPU."""

    name: ClassVar[str] = "cuda"

    @staticmethod
    def missing() -> str:
        """The first thing that it needs and doesn't find, or ""."""
        status = cuda.status()
        if status.devices == 0:
            return status.reason
        if importlib.util.find_spec("onnxruntime") is None:
            return f"ONNX Runtime is not installed: {INSTALL}"
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return (
                f"the installed ONNX Runtime {onnxruntime.__version__} has no CUDA provider "
                f"(pip uninstall onnxruntime, then {INSTALL})"
            )
        return ""

    def plan(self, bundle: Bundle, limits: SessionLimits, memory_limit: int | None) -> MemoryPlan:
        """The GPU's memory, and the host's where they are one."""
        return plan_cuda(bundle, limits, memory_limit)

    def memory_in_use(self) -> int:
        """Bytes of the GPU, by whomever."""
        return used_device_memory()

    def open(self, bundle: Bundle, limits: SessionLimits, threads: int) -> Opened:
        """ONNX Runtime on both graphs and the project's own kernels, on one stream."""
        from qwen2vl_rt.backends.cuda import executors, provider
        from qwen2vl_rt.backends.device.frames import cuda_frames

        device, on_stream = provider.cuda_device()
        dtype = executors.compute_dtype(bundle)
        # The largest graph first: while a quantized one loads, its weights are in memory twice.
        decoder = executors.device_decoder(bundle, limits, device, on_stream)[0]
        vision = executors.DeviceVision(bundle, device, dtype, on_stream)
        return Opened(decoder, vision, device=device, frames=cuda_frames(dtype))
