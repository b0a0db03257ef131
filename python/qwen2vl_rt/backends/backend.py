"""What a session asks of the backend that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.plan import MemoryPlan
from qwen2vl_rt.processing.device_frames import DeviceFrames
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.vision import VisionExecutor


@dataclass(frozen=True)
class Opened:
    """A bundle's executors on one backend, loaded; their memory goes with the object."""

    decoder: _core.Decoder
    """With the KV cache."""
    vision: VisionExecutor
    least_chunk: int = 1
    """Tokens below which the decoder computes a prompt in another way than more of them."""
    device: _core.Device | None = None
    """The GPU, None on the CPU."""
    frames: DeviceFrames | None = None
    """What prepares pictures in the GPU's memory, None on the CPU."""
    keep: Callable[[], None] = lambda: None
    """Writes to disk what is worth keeping for the next session."""


@dataclass(frozen=True)
class Backend(ABC):
    """A chosen backend: plans and opens bundles on this machine."""

    name: ClassVar[str]
    """`"cpu"`, `"cuda"` or `"tensorrt"`."""
    reason: str
    """Why this one, in words for a person."""

    @abstractmethod
    def plan(self, bundle: Bundle, limits: SessionLimits, memory_limit: int | None) -> MemoryPlan:
        """A session's memory, before anything is loaded.

        Args:
            bundle: the model.
            limits: as asked for, the defaults filled in; the plan's are the session's.
            memory_limit: bytes that the session may use; what is free if None.
        """

    @abstractmethod
    def memory_in_use(self) -> int:
        """Bytes in use now of the memory that is planned: see `MemoryPlan.measured`."""

    @abstractmethod
    def open(self, bundle: Bundle, limits: SessionLimits, threads: int) -> Opened:
        """Load a bundle, `threads` to an operator on the CPU; 0 takes all cores.

        Raises:
            BackendError: it does not open here.
        """

    def advice(self, bundle: Bundle, plan: MemoryPlan) -> str:
        """What would fit in the place of a plan that exceeds its limit."""

        def fits(**changes: int) -> bool:
            smaller = self.plan(bundle, replace(plan.limits, **changes), plan.limit)
            return smaller.total <= plan.limit

        found = []
        token = bundle.geometry.vision.pixels_per_token
        for name, step in (("max_length", 64), ("max_pixels", token)):
            largest = _largest(
                getattr(plan.limits, name) // step, lambda n, name=name, step=step: fits(**{name: n * step})
            )
            if largest:
                found.append(f"{name}={largest * step}")
                if name == "max_length" and largest * step <= GenerationOptions.max_new_tokens:
                    # By default the answer alone would fill it, and every call would be refused.
                    found[-1] += f" with max_new_tokens lowered from {GenerationOptions.max_new_tokens}"
        if not found and fits(max_length=64, max_pixels=4 * token, max_batch=1):
            found.append("a smaller max_batch, max_length and max_pixels together")
        would = " or ".join(found) if found else "nothing: use a bundle of lower precision or a smaller model"
        return f"What would fit: {would}."


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """The largest n in [1, high] for which fits(n), 0 if none: fits falls from true to false once."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
