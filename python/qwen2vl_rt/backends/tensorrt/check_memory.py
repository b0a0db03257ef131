"""Whether the CPU's memory holds what the self-check's values take, before they are computed."""

from __future__ import annotations

import math

from qwen2vl_rt.backends.cpu.plan import plan_cpu
from qwen2vl_rt.backends.tensorrt.check_inputs import check_steps, picture_sizes
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import MemoryLimitError
from qwen2vl_rt.plan import GIB, MemoryPlan
from qwen2vl_rt.session_limits import SessionLimits


def require_memory(bundle: Bundle, limits: SessionLimits) -> None:
    """Refuse to compute values that would not fit: an Orin hangs where other machines end the process.

    Args:
        bundle: the model.
        limits: see `check_inputs.check_steps`.

    Raises:
        MemoryLimitError: how much is missing.
    """
    plan = plan_cpu(bundle, _step_limits(bundle, limits))
    needed = _peak(plan)
    if needed > plan.limit:
        sizes = (size / GIB for size in (needed, plan.limit, needed - plan.limit))
        raise MemoryLimitError(
            "The cpu backend's values for the self-check take {:.2f} GiB, and {:.2f} GiB of memory is "
            "available, {:.2f} GiB too little: close other programs".format(*sizes)
        )


def _step_limits(bundle: Bundle, limits: SessionLimits) -> SessionLimits:
    """The limits of a session that would do no more than the check."""
    vision, steps = bundle.geometry.vision, check_steps(limits)
    patches = max(math.prod(size) for size in picture_sizes(limits, vision.patch_size, vision.merge_size))
    return SessionLimits(
        max_length=max(patches // vision.merge_size**2, *(max(step.past) + step.tokens for step in steps)),
        max_batch=max(step.rows for step in steps),
        max_pixels=patches * vision.patch_size**2,
        prefill_chunk=max(step.tokens for step in steps),
    )


def _peak(plan: MemoryPlan) -> int:
    """Bytes, where the vision tower is let go before the decoder is loaded."""
    process, tower = plan.parts["process"], plan.parts["vision weights"] + plan.parts["vision"]
    return process + max(tower, plan.total - process - tower)
