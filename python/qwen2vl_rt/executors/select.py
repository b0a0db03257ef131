"""Which engine runs a bundle on this machine, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwen2vl_rt import cuda
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.session_limits import AskedLimits

if TYPE_CHECKING:
    from qwen2vl_rt.bundle import Bundle
    from qwen2vl_rt.tensorrt.find import EngineSet

INSTALL_CPU = "pip install 'qwen2vl_rt[cpu]'"
INSTALL_CUDA = "pip install 'qwen2vl_rt[cuda]'"
NAMES = ("auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class Backend:
    """A chosen engine."""

    name: str
    """`"cpu"`, `"cuda"` or `"tensorrt"`."""
    reason: str
    """Why this one, in words for a person."""
    engines: list[EngineSet] = field(default_factory=list, repr=False, compare=False)
    """The bundle's TensorRT engines that fit what was asked, the best first."""


def select_backend(
    name: str = "auto", bundle: Bundle | None = None, asked: AskedLimits | None = None, refused: str = ""
) -> Backend:
    """Choose the engine called `name`, or the best one here for `"auto"`: a GPU's, else the CPU's.

    Args:
        name: `"auto"`, `"cpu"`, `"cuda"` or `"tensorrt"`.
        bundle: the model; without one, nothing is said about its TensorRT engines.
        asked: what a session needs of them.
        refused: why its TensorRT engines are not used, if that was found out.

    Raises:
        BackendError: the name is unknown, or what it needs is not there.
    """
    if name not in NAMES:
        raise BackendError(f"There is no backend {name!r}: choose 'auto', 'cpu', 'cuda' or 'tensorrt'.")
    if name == "tensorrt":
        return Backend("tensorrt", "asked for", _tensorrt_engines(bundle, asked))
    not_used = ""
    if name == "auto" and cuda.status().devices:
        try:
            if refused:
                raise BackendError(refused)
            return Backend("tensorrt", "its engines run on this GPU", _tensorrt_engines(bundle, asked))
        except BackendError as error:
            not_used = f"; not tensorrt: {str(error).rstrip('.')}"
    if importlib.util.find_spec("onnxruntime") is None:
        wanted = INSTALL_CUDA if name == "cuda" else INSTALL_CPU
        raise BackendError(
            f"The {name.replace('auto', 'cpu')} backend needs ONNX Runtime, which is not installed: {wanted}"
            + not_used
        )
    if name == "cpu":
        return Backend("cpu", "asked for")
    missing = _missing_for_cuda()
    if name == "cuda":
        if missing:
            raise BackendError(f"The cuda backend can't run here: {missing}.")
        return Backend("cuda", "asked for")
    if missing:
        return Backend("cpu", f"not cuda: {missing}{not_used}")
    return Backend("cuda", f"there is an NVIDIA GPU{not_used}")


def _tensorrt_engines(bundle: Bundle | None, asked: AskedLimits | None) -> list[EngineSet]:
    """The bundle's engines that run here. Raises BackendError: the first thing that is missing."""
    status = cuda.status()
    if status.devices == 0:
        raise BackendError(f"The tensorrt backend can't run here: {status.reason}.")
    from qwen2vl_rt.tensorrt.find import find_engines
    from qwen2vl_rt.tensorrt.gpu import compute_capability
    from qwen2vl_rt.tensorrt.target import edition_problem

    here = compute_capability()
    if problem := edition_problem(here):
        raise BackendError(f"The tensorrt backend can't run here: {problem.rstrip('.')}.")
    return find_engines(bundle, here, asked or AskedLimits()) if bundle is not None else []


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
