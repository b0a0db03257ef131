"""How much memory a session will need, computed before anything is loaded: what the backends' plans share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.vision import PATCHES_PER_CALL

GIB = 1 << 30
MIB = 1 << 20

# Python, NumPy, ONNX Runtime and the compiled module, before any weight is touched.
PROCESS_BYTES = 160 * MIB


@dataclass(frozen=True)
class MemoryPlan:
    """A session's memory by part, in bytes, at its stated limits in full use: the process' with the cpu
    backend, with cuda and tensorrt the GPU's, and the process' where they share it.
    """

    limits: SessionLimits
    parts: dict[str, int]
    limit: int
    """What the session may use: `memory_limit`, else what the machine had available."""
    measured: int | None = field(default=None)
    """Memory in use when the plan was asked for (the process's resident memory, or the GPU's by whomever);
    None before loading."""

    @property
    def total(self) -> int:
        """Sum of the parts, in bytes."""
        return sum(self.parts.values())

    def with_measured(self, measured: int) -> MemoryPlan:
        """This plan beside a measurement, in bytes."""
        return replace(self, measured=measured)

    def to_json(self) -> dict[str, object]:
        """The plan as plain numbers."""
        return {
            "limits": vars(self.limits),
            "parts": self.parts,
            "total": self.total,
            "limit": self.limit,
            "measured": self.measured,
        }

    def __str__(self) -> str:
        width = max(len(name) for name in self.parts)
        lines = [f"{name:<{width}}  {human_bytes(size):>9}" for name, size in self.parts.items()]
        lines.append(f"{'total':<{width}}  {human_bytes(self.total):>9}  (may use {human_bytes(self.limit)})")
        if self.measured is not None:
            lines.append(f"{'measured':<{width}}  {human_bytes(self.measured):>9}")
        return "\n".join(lines)


def kv_bytes_per_token(geometry: Geometry, item: int = 4) -> int:
    """Bytes of one position in the KV cache, all layers: keys and values of `item` bytes each (float32's)."""
    decoder = geometry.decoder
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * item


def largest_picture(geometry: Geometry, limits: SessionLimits) -> int:
    """Pixels of the largest resized picture whose tokens the cache holds."""
    return max(1, min(limits.max_pixels, limits.max_length * geometry.vision.pixels_per_token))


def patches_at_once(geometry: Geometry, limits: SessionLimits) -> int:
    """The most patches that a call of the vision tower takes: the largest picture's, or small ones'."""
    vision = geometry.vision
    together = limits.max_batch * limits.max_length * vision.merge_size**2
    return max(largest_picture(geometry, limits) // vision.patch_size**2, min(together, PATCHES_PER_CALL))


def pictures_of_prompts(geometry: Geometry, limits: SessionLimits, item: int = 4) -> int:
    """Bytes of patches (`item` bytes a value) and float32 embeddings of prompts that are pictures only."""
    vision = geometry.vision
    patches = vision.merge_size**2 * vision.patch_values * item
    return limits.max_batch * limits.max_length * (patches + 4 * geometry.decoder.hidden_size)


def human_bytes(size: int) -> str:
    """For a person: in GiB, MiB or, where that would read 0.0, bytes."""
    if size >= GIB:
        return f"{size / GIB:.2f} GiB"
    return f"{size / MIB:.1f} MiB" if 20 * size >= MIB else f"{size} bytes"


def told_apart(needed: int, limit: int) -> tuple[str, str]:
    """Two sizes for a person, in bytes where they would read the same."""
    shown = human_bytes(needed), human_bytes(limit)
    return (f"{needed:,} bytes", f"{limit:,} bytes") if shown[0] == shown[1] else shown
