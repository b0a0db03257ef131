"""How much memory a session will need, computed from the manifest before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import (
    DECODER_WEIGHTS,
    EMBEDDING,
    PREFILL_WEIGHTS,
    PREPROCESSOR_CONFIG,
    VISION_WEIGHTS,
    Bundle,
)
from qwen2vl_rt.errors import MemoryLimitError
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.options import GenerationOptions, check_session_options
from qwen2vl_rt.processing.pixels import PixelSettings

if TYPE_CHECKING:
    from qwen2vl_rt.executors import Backend
    from qwen2vl_rt.tensorrt.find import Asked

DEFAULT_MAX_LENGTH = 8192
PREFILL_CHUNK = 512

GIB = 1 << 30
MIB = 1 << 20

# Python, NumPy, ONNX Runtime and the compiled module, before any weight is touched.
PROCESS_BYTES = 160 * MIB

# Packed weights (executors/onnx_session.py) over the same on disk, measured: block sums and padding.
PACKED_INT8, PACKED_INT4, PACKED_TABLE = 1.02, 1.12, 1.07
# A prompt's activations in ONNX Runtime's arena: chunks of other lengths leave gaps between them, measured.
ARENA = 1.25
# int8 on CPUs where exact products need both bytes unsigned: ONNX Runtime keeps a second copy.
EXACT_INT8 = 2.25


@dataclass(frozen=True)
class SessionLimits:
    """What a session is built for; together with the bundle this fixes its memory."""

    max_length: int
    """Positions a cache row holds: prompt, visual tokens and answer."""
    max_batch: int
    """Cache rows: answers generated side by side."""
    max_pixels: int
    """The largest picture (or video frame) after resizing, in pixels."""
    prefill_chunk: int
    """Prompt tokens computed in one decoder step."""


@dataclass(frozen=True)
class MemoryPlan:
    """A session's memory by part, in bytes, at its stated limits in full use."""

    limits: SessionLimits
    parts: dict[str, int]
    limit: int
    """What the session may use: `memory_limit`, else what the machine had available."""
    backend: str = "cpu"
    """Whose memory is planned: "cpu" the process', "cuda" and "tensorrt" the GPU's, with the process' where
    they share it."""
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
        lines = [f"{name:<{width}}  {_human(size):>9}" for name, size in self.parts.items()]
        lines.append(f"{'total':<{width}}  {_human(self.total):>9}  (may use {_human(self.limit)})")
        if self.measured is not None:
            lines.append(f"{'measured':<{width}}  {_human(self.measured):>9}")
        return "\n".join(lines)


def session_limits(
    bundle: Bundle,
    max_length: int | None = None,
    max_batch: int = 1,
    max_pixels: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> SessionLimits:
    """The limits of a session, with the defaults filled in from the bundle.

    Raises:
        InputError: a limit that is no whole number, or below 1.
    """
    limits = SessionLimits(
        max_length=DEFAULT_MAX_LENGTH if max_length is None else max_length,
        max_batch=max_batch,
        max_pixels=_bundle_max_pixels(bundle) if max_pixels is None else max_pixels,
        prefill_chunk=prefill_chunk,
    )
    return SessionLimits(**check_session_options(**vars(limits)))


def plan_memory(
    bundle: Bundle, limits: SessionLimits, memory_limit: int | None, backend: str = "cpu"
) -> MemoryPlan:
    """Plan a session: the process's memory with the cpu backend, the GPU's with cuda (which may be the same).

    On the CPU the KV cache is float32 in every precision.
    """
    if backend == "cuda":
        from qwen2vl_rt.cuda.plan import device_parts, free_device_memory, host_parts

        limit = free_device_memory() if memory_limit is None else memory_limit
        return MemoryPlan(limits, host_parts(bundle) | device_parts(bundle, limits), limit, backend)
    geometry = bundle.geometry
    weights, loading = _packed_weights(bundle) if bundle.quantized else (_float_weights(bundle), 0)
    in_use = {
        "KV cache": limits.max_batch * limits.max_length * kv_bytes_per_token(geometry),
        "prefill and decode": _decoder_workspace(geometry, limits),
        "vision": _vision_workspace(geometry, limits),
    }
    parts = {"process": PROCESS_BYTES, **weights, **in_use}
    # What loading takes is free again before anything is generated.
    if (beyond := loading - sum(in_use.values())) > 0:
        parts["loading, for a moment"] = beyond
    return MemoryPlan(limits, parts, available_memory() if memory_limit is None else memory_limit)


def plan_session(
    bundle: Bundle, backend: Backend, usual: SessionLimits, asked: Asked, memory_limit: int | None
) -> MemoryPlan:
    """Plan a session on a chosen backend; its limits are the plan's.

    Args:
        bundle: the model.
        backend: what was selected, with the engines if it is tensorrt.
        usual: limits with the defaults filled in.
        asked: what the caller insists on.
        memory_limit: bytes that it may use; what is free if None.
    """
    if not backend.engines:
        return plan_memory(bundle, usual, memory_limit, backend.name)
    from qwen2vl_rt.tensorrt.plan import plan_engines

    limits = backend.engines[0].session_limits(asked, usual)
    return plan_engines(bundle, backend.engines[0], limits, memory_limit)


def _float_weights(bundle: Bundle) -> dict[str, int]:
    """Weights read where they lie, or widened: the CPU multiplies neither bfloat16 nor float16.

    The embedding table's rows are read from the file as they are used; in memory it is a tied lm_head only.
    """
    widening = 1 if bundle.precision == "fp32" else 2
    weights = {"lm_head": EMBEDDING} if bundle.geometry.decoder.tied_embedding else {}
    weights |= {"decoder weights": DECODER_WEIGHTS, "vision weights": VISION_WEIGHTS}
    return {part: bundle.files[name].size * widening for part, name in weights.items()}


def _packed_weights(bundle: Bundle) -> tuple[dict[str, int], int]:
    """Integer weights in the kernels' own layout, and what loading takes beside them.

    A graph is loaded with its file mapped beside the packed copy; then the mapped pages are dropped (by the
    project's own operators matrix by matrix). A tied table's packed copy is lm_head's; rows of the table
    itself are read from the file as they are used.
    """
    sizes = {name: entry.size for name, entry in bundle.files.items()}
    table = round(sizes[EMBEDDING] * PACKED_TABLE)
    int8 = EXACT_INT8 if _core.overflows_int8() else PACKED_INT8
    prompt = round(sizes.get(PREFILL_WEIGHTS, 0) * int8)
    decoder = round(sizes[DECODER_WEIGHTS] * (int8 if bundle.precision == "int8" else PACKED_INT4))
    vision = round(sizes[VISION_WEIGHTS] * int8)
    tied = table if bundle.geometry.decoder.tied_embedding else 0
    loaded = loading = 0
    own = _core.has_integer_linear() and not _core.has_int8_tiles()
    for size in (prompt, decoder, tied, vision) if prompt else (decoder + tied, vision):  # in this order
        loading = max(loading, loaded + size + (min(size, table) if own else size))
        loaded += size
    weights = {"lm_head": tied} if tied else {}
    weights |= {"decoder weights": decoder, "vision weights": vision}
    if prompt:
        weights["prompt weights"] = prompt
    return weights, loading - loaded


def check_plan(bundle: Bundle, plan: MemoryPlan) -> None:
    """Refuse a plan over its limit.

    Raises:
        MemoryLimitError: with the plan, and the largest max_length and max_pixels that would fit.
    """
    if plan.total <= plan.limit:
        return
    if plan.backend == "tensorrt":
        from qwen2vl_rt.tensorrt.plan import refuse

        refuse(bundle, plan)

    def fits(**changes: int) -> bool:
        return (
            plan_memory(bundle, replace(plan.limits, **changes), plan.limit, plan.backend).total <= plan.limit
        )

    advice = []
    for name, step in (("max_length", 64), ("max_pixels", pixels_per_token(bundle.geometry))):
        largest = _largest(
            getattr(plan.limits, name) // step, lambda n, name=name, step=step: fits(**{name: n * step})
        )
        if largest:
            advice.append(f"{name}={largest * step}")
            if name == "max_length" and largest * step <= GenerationOptions.max_new_tokens:
                # By default the answer alone would fill it, and every call would be refused.
                advice[-1] += f" with max_new_tokens lowered from {GenerationOptions.max_new_tokens}"
    if not advice and fits(max_length=64, max_pixels=4 * pixels_per_token(bundle.geometry), max_batch=1):
        advice.append("a smaller max_batch, max_length and max_pixels together")
    would = " or ".join(advice) if advice else "nothing: use a bundle of lower precision or a smaller model"
    raise MemoryLimitError(
        f"This session needs {_human(plan.total)} and may use {_human(plan.limit)}. "
        f"What would fit: {would}.\n{plan}"
    )


def _bundle_max_pixels(bundle: Bundle) -> int:
    return PixelSettings.from_file(bundle.file(PREPROCESSOR_CONFIG)).max_pixels


def kv_bytes_per_token(geometry: Geometry, item: int = 4) -> int:
    """Bytes of one position in the KV cache, all layers: keys and values of `item` bytes each (float32's)."""
    decoder = geometry.decoder
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * item


def _decoder_workspace(geometry: Geometry, limits: SessionLimits) -> int:
    decoder = geometry.decoder
    tokens = max(min(limits.prefill_chunk, limits.max_length), limits.max_batch)
    # Gate, up and their product, plus the residual stream, q, k, v and norms; float32.
    activations = round(tokens * (3 * decoder.mlp_size + 8 * decoder.hidden_size) * 4 * ARENA)
    # Keys and values of a row in one layer, as a prompt's attention packs them (csrc/attention).
    packed = limits.max_length * kv_bytes_per_token(geometry) // decoder.layers
    # A step's, or those of the longest draft, in the engine's memory and in the loop's; and each row's behind
    # the penalties, with its tokens' counts.
    rows = 2 * max(limits.max_batch, _core.LONGEST_DRAFT + 1) + 2 * limits.max_batch
    logits = rows * decoder.vocab_size * 4
    return activations + packed + logits


def _vision_workspace(geometry: Geometry, limits: SessionLimits) -> int:
    vision = geometry.vision
    patches = largest_picture(geometry, limits) // vision.patch_size**2
    # The patches themselves; residual, norm, q, k, v and their rotated copies; three MLP tensors (before,
    # sigmoid, product); float32.
    values = vision.patch_values + 8 * vision.embed_dim + 3 * vision.mlp_size
    return patches * values * 4


def pixels_per_token(geometry: Geometry) -> int:
    """Pixels of a resized picture behind one visual embedding."""
    return (geometry.vision.patch_size * geometry.vision.merge_size) ** 2


def largest_picture(geometry: Geometry, limits: SessionLimits) -> int:
    """Pixels of the largest resized picture whose tokens the cache holds."""
    return max(1, min(limits.max_pixels, limits.max_length * pixels_per_token(geometry)))


def available_memory() -> int:
    """Bytes that this process may still take: the machine's available memory, or its cgroup's if less."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used))
    return available


def resident_memory() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured_memory(backend: str) -> int:
    """Bytes in use now where `backend` keeps a session: see MemoryPlan.measured."""
    if backend != "cpu":
        from qwen2vl_rt.cuda.plan import used_device_memory

        return used_device_memory()
    return resident_memory()


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """The largest n in [1, high] for which fits(n), 0 if none: fits falls from true to false once."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _human(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
