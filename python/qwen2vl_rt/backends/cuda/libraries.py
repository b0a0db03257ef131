"""The CUDA libraries that ONNX Runtime's CUDA provider is linked against, found and loaded before it."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

# By the toolkit's major version, in the order of their own dependencies.
LIBRARIES = {
    12: ("libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12", "libcurand.so.10", "libcufft.so.11"),
    13: ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcufft.so.12"),
}
CUDNN = "libcudnn.so.9"


def load_cuda_libraries(major: int) -> list[str]:
    """Load what the system's own search doesn't find from NVIDIA's Python packages, wherever they are.

    Args:
        major: the CUDA version that ONNX Runtime was built for, 12 or 13.

    Returns:
        The libraries that are nowhere, by name: the provider will say so itself when it needs them.
    """
    missing = []
    for name in (*LIBRARIES.get(major, ()), CUDNN):
        candidates = [
            name,
            *(str(path) for folder in _nvidia_folders() for path in folder.glob(f"*/lib/{name}")),
        ]
        if not any(_load(candidate) for candidate in candidates):
            missing.append(name)
    return missing


def _nvidia_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _load(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
