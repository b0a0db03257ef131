"""Plans over their limit are refused, with what would fit."""

from __future__ import annotations

from qwen2vl_rt.backends.backend import Backend
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import MemoryLimitError
from qwen2vl_rt.plan import MemoryPlan, told_apart


def check_plan(bundle: Bundle, backend: Backend, plan: MemoryPlan) -> None:
    """Refuse a backend's plan over its limit.

    Raises:
        MemoryLimitError: with the plan, and what would fit.
    """
    if plan.total <= plan.limit:
        return
    needed, limit = told_apart(plan.total, plan.limit)
    advice = backend.advice(bundle, plan)
    raise MemoryLimitError(f"This session needs {needed} and may use {limit}. {advice}\n{plan}")
