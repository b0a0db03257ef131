"""Which backend runs a bundle on this machine, and why."""

from __future__ import annotations

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.backend import Backend
from qwen2vl_rt.backends.cpu.backend import CpuBackend
from qwen2vl_rt.backends.cuda.backend import CudaBackend
from qwen2vl_rt.backends.tensorrt.backend import TensorRTBackend
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.session_limits import AskedLimits

NAMES = ("auto", CpuBackend.name, CudaBackend.name, TensorRTBackend.name)


def select_backend(
    name: str = "auto", bundle: Bundle | None = None, asked: AskedLimits | None = None, refused: str = ""
) -> Backend:
    """Choose the backend called `name`, or the best one here for `"auto"`: a GPU's, else the CPU's.

    Args:
        name: `"auto"`, `"cpu"`, `"cuda"` or `"tensorrt"`.
        bundle: the model; without one, nothing is said about its TensorRT engines.
        asked: what a session needs of them.
        refused: why its TensorRT engines are not used, if that was found out.

    Raises:
        BackendError: the name is unknown, or what it needs is not there.
    """
    asked = asked or AskedLimits()
    if name not in NAMES:
        raise BackendError(f"There is no backend {name!r}: choose 'auto', 'cpu', 'cuda' or 'tensorrt'.")
    if name == "tensorrt":
        return TensorRTBackend.find("asked for", bundle, asked)
    if name == "cuda":
        if missing := CudaBackend.missing():
            raise BackendError(f"The cuda backend can't run here: {missing}.")
        return CudaBackend("asked for")
    not_used = ""
    if name == "auto" and cuda.status().devices:
        try:
            if refused:
                raise BackendError(refused)
            return TensorRTBackend.find("its engines run on this GPU", bundle, asked)
        except BackendError as error:
            not_used = f"; not tensorrt: {str(error).rstrip('.')}"
    if missing := CpuBackend.missing():
        raise BackendError(f"The cpu backend needs {missing}{not_used}")
    if name == "cpu":
        return CpuBackend("asked for")
    if missing := CudaBackend.missing():
        return CpuBackend(f"not cuda: {missing}{not_used}")
    return CudaBackend(f"there is an NVIDIA GPU{not_used}")
