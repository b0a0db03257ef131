"""How much memory a session on the CPU will need, computed from the manifest before anything is loaded."""

from __future__ import annotations

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, PREFILL_WEIGHTS, VISION_WEIGHTS, Bundle
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.machine import available_memory
from qwen2vl_rt.plan import (
    PROCESS_BYTES,
    MemoryPlan,
    kv_bytes_per_token,
    patches_at_once,
    pictures_of_prompts,
)
from qwen2vl_rt.session_limits import SessionLimits

# Packed weights (onnx_session.py) over the same on disk, measured: block sums and padding.
PACKED_INT8, PACKED_INT4, PACKED_TABLE = 1.02, 1.12, 1.07
# int8 on CPUs where exact products need both bytes unsigned: ONNX Runtime keeps a second copy.
PACKED_UNSIGNED_INT8 = 2.25


def plan_cpu(bundle: Bundle, limits: SessionLimits, memory_limit: int | None = None) -> MemoryPlan:
    """Plan a session: the process's memory. See `Backend.plan`."""
    limit = available_memory() if memory_limit is None else memory_limit
    return MemoryPlan(limits, _parts(bundle, limits), limit)


def _parts(bundle: Bundle, limits: SessionLimits) -> dict[str, int]:
    """Bytes by part, at the limits in full use. The KV cache is float32 in every precision."""
    geometry = bundle.geometry
    weights, loading = _packed_weights(bundle) if bundle.quantized else (_float_weights(bundle), 0)
    in_use = {
        "KV cache": limits.max_batch * limits.max_length * kv_bytes_per_token(geometry),
        "prefill and decode": _decoder_workspace(geometry, limits),
        "vision": _vision_workspace(geometry, limits),
        "pictures of prompts": pictures_of_prompts(geometry, limits),
    }
    parts = {"process": PROCESS_BYTES, **weights, **in_use}
    # What loading takes is free again before anything is generated.
    if (beyond := loading - sum(in_use.values())) > 0:
        parts["loading, for a moment"] = beyond
    return parts


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
    int8 = PACKED_UNSIGNED_INT8 if _core.overflows_int8() else PACKED_INT8
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


def _decoder_workspace(geometry: Geometry, limits: SessionLimits) -> int:
    decoder = geometry.decoder
    tokens = max(min(limits.prefill_chunk, limits.max_length), limits.max_batch)
    # Gate, up and their product, plus the residual stream, q, k, v and norms; float32.
    activations = tokens * (3 * decoder.mlp_size + 8 * decoder.hidden_size) * 4
    # Keys and values of a row in one layer, as a prompt's attention packs them (csrc/attention).
    packed = limits.max_length * kv_bytes_per_token(geometry) // decoder.layers
    # A step's, or those of the longest draft, in the engine's memory and in the loop's; and each row's behind
    # the penalties, with its tokens' counts.
    rows = 2 * max(limits.max_batch, _core.LONGEST_DRAFT + 1) + 2 * limits.max_batch
    logits = rows * decoder.vocab_size * 4
    return activations + packed + logits


def _vision_workspace(geometry: Geometry, limits: SessionLimits) -> int:
    vision = geometry.vision
    # The call's own copy of patches; residual, norm, q, k, v and their rotated copies; three MLP tensors
    # (before, sigmoid, product); float32.
    values = vision.patch_values + 8 * vision.embed_dim + 3 * vision.mlp_size
    return patches_at_once(geometry, limits) * values * 4
