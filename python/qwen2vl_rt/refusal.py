"""Plans over their limit are refused, with what would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import MemoryLimitError
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.plan import MemoryPlan, plan_memory, told_apart


def check_plan(bundle: Bundle, plan: MemoryPlan) -> None:
    """Refuse a plan over its limit.

    Raises:
        MemoryLimitError: with the plan, and the largest max_length and max_pixels that would fit.
    """
    if plan.total <= plan.limit:
        return
    if plan.backend == "tensorrt":
        from qwen2vl_rt.tensorrt.plan import refuse

        refuse(bundle, plan)

    def fits(**changes: int) -> bool:
        return (
            plan_memory(bundle, replace(plan.limits, **changes), plan.limit, plan.backend).total <= plan.limit
        )

    advice = []
    token = bundle.geometry.vision.pixels_per_token
    for name, step in (("max_length", 64), ("max_pixels", token)):
        largest = _largest(
            getattr(plan.limits, name) // step, lambda n, name=name, step=step: fits(**{name: n * step})
        )
        if largest:
            advice.append(f"{name}={largest * step}")
            if name == "max_length" and largest * step <= GenerationOptions.max_new_tokens:
                # By default the answer alone would fill it, and every call would be refused.
                advice[-1] += f" with max_new_tokens lowered from {GenerationOptions.max_new_tokens}"
    if not advice and fits(max_length=64, max_pixels=4 * token, max_batch=1):
        advice.append("a smaller max_batch, max_length and max_pixels together")
    would = " or ".join(advice) if advice else "nothing: use a bundle of lower precision or a smaller model"
    needed, limit = told_apart(plan.total, plan.limit)
    raise MemoryLimitError(
        f"This session needs {needed} and may use {limit}. What would fit: {would}.\n{plan}"
    )


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
