"""The CUDA half of the compiled runtime, imported when it is first asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from qwen2vl_rt.errors import BackendError


@dataclass(frozen=True)
class CudaStatus:
    """Whether the CUDA kernels can run here."""

    built: bool
    """The package was installed where nvcc was at hand, so it has the kernels."""
    toolkit: str | None
    """CUDA version of the build, as "13.0"."""
    architectures: tuple[int, ...]
    """GPU architectures with machine code in the package: 90 for compute capability 9.0."""
    devices: int
    """NVIDIA GPUs that this process sees."""
    reason: str
    """Why the kernels can't run here, or "" if they can."""


def load() -> ModuleType:
    """The extension module.

    Raises:
        BackendError: it is not part of this installation.
    """
    try:
        return importlib.import_module("qwen2vl_rt._cuda")
    except ImportError as error:
        raise BackendError(
            "This installation has no CUDA kernels: install it again where nvcc is in PATH, in CUDA_HOME or "
            f"in /usr/local/cuda ({error})"
        ) from error


def status() -> CudaStatus:
    """What this installation and this machine have. Needs neither a driver nor a GPU."""
    try:
        module = load()
    except BackendError:
        reason = "built without CUDA kernels (nvcc was not found, or QWEN2VL_CUDA=OFF)"
        return CudaStatus(False, None, (), 0, reason)
    devices, reason = module.device_status()
    version = module.toolkit_version()
    architectures = tuple(int(number) for number in module.architectures.split())
    return CudaStatus(True, f"{version // 1000}.{version % 1000 // 10}", architectures, devices, reason)
