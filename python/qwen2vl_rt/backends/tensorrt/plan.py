"""How much of a GPU's memory a session on engines will need: their own figures, and what goes around them."""

from __future__ import annotations

from qwen2vl_rt.backends.device.memory import CONTEXT_BYTES, free_device_memory, host_parts, shares_memory
from qwen2vl_rt.backends.tensorrt.find import EngineSet, build_command
from qwen2vl_rt.backends.tensorrt.profiles import SHORTEST
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.plan import MemoryPlan, kv_bytes_per_token, pictures_of_prompts
from qwen2vl_rt.session_limits import SessionLimits


def plan_engines(
    bundle: Bundle, engines: EngineSet, limits: SessionLimits, memory_limit: int | None
) -> MemoryPlan:
    """Plan a session on these engines; the token table is in pinned host memory: `host_parts`."""
    decoder, vision = bundle.geometry.decoder, bundle.geometry.vision
    item = format_named(engines.decoder.form.number_format).item_bytes
    names = {"decoder": "decoder engine", "prefill": "prompt engine", "vision": "vision engine"}
    figures = {graph: one.figures for graph, one in engines.descriptions.items()}
    parts = host_parts(bundle) | {"CUDA context": CONTEXT_BYTES}
    # That profiles share an engine's weights was seen with TensorRT for RTX alone: no less than the file.
    parts |= {names[graph]: max(one.weights_bytes or 0, one.engine_bytes) for graph, one in figures.items()}
    kv = kv_bytes_per_token(bundle.geometry, item)
    tokens = max(limits.prefill_chunk, limits.max_batch)
    buffers = tokens * (decoder.hidden_size + decoder.head_dim) * item
    if not engines.descriptions["decoder"].shared:  # new keys and values, before they are in the cache
        buffers += tokens * kv
    sampling = limits.max_batch * decoder.vocab_size * (4 + 4 + 4 + 1)
    patches = limits.max_pixels // vision.patch_size**2
    patch_bytes = (vision.patch_values + vision.head_dim) * item
    feature_bytes = 4 * decoder.hidden_size // vision.merge_size**2  # a patch's share, float32
    parts |= {
        "KV cache": limits.max_batch * limits.max_length * kv,
        "scratch": max((size for one in figures.values() for size in one.activation_bytes), default=0),
        "inputs, logits and sampling": buffers + sampling,
        "a picture's patches and features": patches * (patch_bytes + feature_bytes),
        "pictures of prompts": pictures_of_prompts(bundle.geometry, limits, 4 if shares_memory() else item),
    }
    limit = free_device_memory() if memory_limit is None else memory_limit
    return MemoryPlan(limits, parts, limit)


def smaller_engines(bundle: Bundle, plan: MemoryPlan) -> str:
    """How to build engines that take less than those of a plan."""
    length = max(plan.limits.max_length // 2, SHORTEST)
    pixels = plan.limits.max_pixels // 2
    command = f"{build_command(bundle)} --max-length {length} --max-pixels {pixels}"
    return (
        f"Build smaller engines, such as {command}, and give the session max_pixels={pixels}, or export in a "
        "lower precision."
    )
