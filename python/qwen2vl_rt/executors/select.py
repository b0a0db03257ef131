"""Which engine runs a bundle on this machine, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from qwen2vl_rt import cuda
from qwen2vl_rt.errors import BackendError

INSTALL_CPU = "pip install 'qwen2vl_rt[cpu]'"
INSTALL_CUDA = "pip install 'qwen2vl_rt[cuda]'"


@dataclass(frozen=True)
class Backend:
    """A chosen engine."""

    name: str
    """`"cpu"` or `"cuda"`."""
    reason: str
    """Why this one, in words for a person."""


def select_backend(name: str = "auto") -> Backend:
    """Choose the engine called `name`, or the best one here for `"auto"`: a GPU's, else the CPU's.

    Raises:
        BackendError: the name is unknown, or what it needs is not installed.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise BackendError(f"There is no backend {name!r}: choose 'auto', 'cpu' or 'cuda'.")
    if importlib.util.find_spec("onnxruntime") is None:
        wanted = INSTALL_CUDA if name == "cuda" else INSTALL_CPU
        raise BackendError(
            f"The {name.replace('auto', 'cpu')} backend needs ONNX Runtime, which is not installed: {wanted}"
        )
    if name == "cpu":
        return Backend("cpu", "asked for")
    missing = _missing_for_cuda()
    if name == "cuda":
        if missing:
            raise BackendError(f"The cuda backend can't run here: {missing}.")
        return Backend("cuda", "asked for")
    if missing:
        return Backend("cpu", f"not cuda: {missing}")
    return Backend("cuda", "there is an NVIDIA GPU")


def _missing_for_cuda() -> str:
    """The first thing that the cuda backend needs and doesn't find, or ""."""
    status = cuda.status()
    if status.devices == 0:
        return status.reason
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            f"the installed ONNX Runtime {onnxruntime.__version__} has no CUDA provider "
            f"(pip uninstall onnxruntime, then {INSTALL_CUDA})"
        )
    return ""
