"""Which engine runs a bundle on this machine, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from qwen2vl_rt.errors import BackendError

INSTALL_CPU = "pip install 'qwen2vl_rt[cpu]'"


@dataclass(frozen=True)
class Backend:
    """A chosen engine."""

    name: str
    """`"cpu"`."""
    reason: str
    """Why this one, in words for a person."""


def select_backend(name: str = "auto") -> Backend:
    """Choose the engine called `name`, or the best one here for `"auto"`.

    Raises:
        BackendError: the name is unknown, or what it needs is not installed.
    """
    if name not in ("auto", "cpu"):
        raise BackendError(f"There is no backend {name!r}: choose 'auto' or 'cpu'.")
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(f"The cpu backend needs ONNX Runtime, which is not installed: {INSTALL_CPU}")
    reason = "asked for" if name == "cpu" else "the only backend in this version"
    return Backend("cpu", reason)
