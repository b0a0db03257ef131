"""The system's memory in a build: what it can't do without, and what is left for trying kernels."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, TensorProto

from qwen2vl_rt.backends.device.memory import shares_memory
from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.errors import MemoryLimitError
from qwen2vl_rt.lowering.graph import Weights
from qwen2vl_rt.machine import available_memory
from qwen2vl_rt.plan import GIB, MIB

# Beside the weights: TensorRT's libraries, its graph and the CUDA context. Builds take more than both
# together (bench/results/tensorrt-build.md); with less, none can end.
MARGIN = GIB

SMALLEST_WORKSPACE = 256 * MIB  # for the scratch memory of one layer's kernels


def stored_bytes(model: ModelProto, weights: Weights) -> int:
    """Bytes of a lowered graph's weights."""
    tensors = (one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL)
    return sum(weights[tensor.name].nbytes for tensor in tensors)


def require_memory(graph: str, weights_bytes: int) -> None:
    """Refuse a build that the memory does not hold: a Jetson hangs where other machines end the process.

    Args:
        graph: "vision", "prefill" or "decoder".
        weights_bytes: of the lowered graph, of which TensorRT makes a copy at least, the engine.

    Raises:
        MemoryLimitError: how much is missing.
    """
    needed, available = weights_bytes + MARGIN, available_memory()
    if needed > available:
        raise MemoryLimitError(
            f"Building the {graph} engine takes {needed / GIB:.2f} GiB of memory or more (its weights, and "
            f"{MARGIN / GIB:.0f} GiB for TensorRT), and {available / GIB:.2f} GiB is available, "
            f"{(needed - available) / GIB:.2f} GiB too little: close other programs, or export in a lower "
            "precision."
        )


def limit_workspace(config: Any, edition: Edition, weights_bytes: int) -> None:
    """Keep kernels that are tried within what the system has left, where the GPU shares its memory.

    Unset, the limit is all of the GPU's memory, which there is the system's, used or not.

    Args:
        config: of a builder.
        edition: whose it is.
        weights_bytes: of the network, which is parsed: the engine still comes to this.
    """
    if shares_memory():
        left = available_memory() - weights_bytes - MARGIN
        config.set_memory_pool_limit(edition.module.MemoryPoolType.WORKSPACE, max(left, SMALLEST_WORKSPACE))
