"""The tensorrt backend: engines that `qwen2vl build` made, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.backend import Backend, Opened
from qwen2vl_rt.backends.device.memory import used_device_memory
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.plan import MemoryPlan
from qwen2vl_rt.session_limits import AskedLimits, SessionLimits

if TYPE_CHECKING:
    from qwen2vl_rt.backends.tensorrt.find import EngineSet


@dataclass(frozen=True)
class TensorRTBackend(Backend):
    """Plans and opens a bundle's engines on the first GPU."""

    name: ClassVar[str] = "tensorrt"
    engines: Sequence[EngineSet] = field(default=(), repr=False, compare=False)
    """Those that fit what was asked, the best first; none where no bundle is at hand."""

    @staticmethod
    def find(reason: str, bundle: Bundle | None, asked: AskedLimits) -> TensorRTBackend:
        """The backend, with the engines of a bundle that run here.

        Raises:
            BackendError: the first thing that is missing.
        """
        status = cuda.status()
        if status.devices == 0:
            raise BackendError(f"The tensorrt backend can't run here: {status.reason}.")
        from qwen2vl_rt.backends.tensorrt.find import find_engines
        from qwen2vl_rt.backends.tensorrt.gpu import compute_capability
        from qwen2vl_rt.backends.tensorrt.target import edition_problem

        here = compute_capability()
        if problem := edition_problem(here):
            raise BackendError(f"The tensorrt backend can't run here: {problem.rstrip('.')}.")
        return TensorRTBackend(reason, find_engines(bundle, here, asked) if bundle is not None else ())

    def plan(self, bundle: Bundle, limits: SessionLimits, memory_limit: int | None) -> MemoryPlan:
        """The memory of the best engines, whose limits the session's are."""
        from qwen2vl_rt.backends.tensorrt.plan import plan_engines

        best = self.engines[0]
        return plan_engines(bundle, best, best.session_limits(limits), memory_limit)

    def advice(self, bundle: Bundle, plan: MemoryPlan) -> str:
        """How to build smaller engines: what they take is decided there."""
        from qwen2vl_rt.backends.tensorrt.plan import smaller_engines

        return smaller_engines(bundle, plan)

    def memory_in_use(self) -> int:
        """Bytes of the GPU, by whomever."""
        return used_device_memory()

    def open(self, bundle: Bundle, limits: SessionLimits, threads: int) -> Opened:
        """The best engines that are right here. Raises as `load_engines` does."""
        from qwen2vl_rt.backends.device.frames import cuda_frames
        from qwen2vl_rt.backends.tensorrt.executors import TensorRTVision, tensorrt_decoder
        from qwen2vl_rt.backends.tensorrt.load import load_engines

        engines = load_engines(bundle, self.engines, threads)
        return Opened(
            tensorrt_decoder(bundle, limits, engines)[0],
            TensorRTVision(bundle, engines),
            device=engines.device,
            frames=cuda_frames(engines.dtype),
            keep=engines.keep_kernels,
        )
