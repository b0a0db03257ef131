"""The cpu backend: the graphs on ONNX Runtime, the KV cache updated in place."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

from qwen2vl_rt import _core
from qwen2vl_rt.backends.backend import Backend, Opened
from qwen2vl_rt.backends.cpu.plan import plan_cpu
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.peak_memory import resident_memory
from qwen2vl_rt.plan import MemoryPlan
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import embedding_table

INSTALL = "pip install 'qwen2vl_rt[cpu]'"

# Tokens that attend as a prompt's many do (csrc/attention/attention.h).
LEAST_CHUNK = _core.FEW_ATTENDING_TOKENS + 1


@dataclass(frozen=True)
class CpuBackend(Backend):
    """Plans and opens bundles on the CPU."""

    name: ClassVar[str] = "cpu"

    @staticmethod
    def missing() -> str:
        """What it needs and doesn't find, or ""."""
        if importlib.util.find_spec("onnxruntime") is None:
            return f"ONNX Runtime, which is not installed: {INSTALL}"
        return ""

    def plan(self, bundle: Bundle, limits: SessionLimits, memory_limit: int | None) -> MemoryPlan:
        """The process's memory."""
        return plan_cpu(bundle, limits, memory_limit)

    def memory_in_use(self) -> int:
        """Bytes of the process that are in memory."""
        return resident_memory()

    def open(self, bundle: Bundle, limits: SessionLimits, threads: int) -> Opened:
        """ONNX Runtime on both graphs, a cache in host memory."""
        from qwen2vl_rt.backends.cpu.executors import CpuDecoder, CpuVision

        geometry = bundle.geometry.decoder
        cache = _core.KVCache(
            geometry.layers, limits.max_batch, geometry.kv_heads, limits.max_length, geometry.head_dim
        )
        # The largest graph first: while a quantized one loads, its weights are in memory twice.
        executor = CpuDecoder(bundle, cache, threads)
        vision = CpuVision(bundle, threads)
        table = embedding_table(bundle)
        rope = _core.RopeTable(geometry.head_dim, geometry.rope_theta, geometry.mrope_section)
        decoder = _core.HostDecoder(executor, cache, table, rope, limits.prefill_chunk)
        return Opened(decoder, vision, LEAST_CHUNK)
