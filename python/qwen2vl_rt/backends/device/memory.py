"""The first GPU's memory, and what every session on it takes."""

from __future__ import annotations

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.bundle import EMBEDDING, Bundle
from qwen2vl_rt.machine import available_memory
from qwen2vl_rt.plan import MIB, PROCESS_BYTES

# The CUDA context, ONNX Runtime's kernels and the libraries' workspaces. An estimate: bench-gpu reports what
# a session took beside its plan.
CONTEXT_BYTES = 700 * MIB


def host_parts(bundle: Bundle) -> dict[str, int]:
    """Bytes by part beside the GPU's own, where it shares the system's memory: the process, and the pinned
    token table. None elsewhere.
    """
    if not shares_memory():
        return {}
    return {"process": PROCESS_BYTES, "token table": bundle.files[EMBEDDING].size}


def shares_memory() -> bool:
    """Whether the first GPU's memory is the system's, as on a Jetson; False where there is no GPU."""
    return cuda.status().devices > 0 and cuda.load().device_info().integrated


def free_device_memory() -> int:
    """Bytes that the first GPU has to give now."""
    # CUDA does not count the page cache as free, which fills shared memory once a bundle has been read.
    return available_memory() if shares_memory() else cuda.load().device_info().free_bytes


def used_device_memory() -> int:
    """Bytes of the first GPU that are in use now, by whomever."""
    return cuda.load().device_info().total_bytes - free_device_memory()
