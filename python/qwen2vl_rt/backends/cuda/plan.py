"""How much of a GPU's memory a session will need, computed from the manifest before anything is loaded."""

from __future__ import annotations

from qwen2vl_rt import _core
from qwen2vl_rt.backends.device.memory import CONTEXT_BYTES, free_device_memory, host_parts, shares_memory
from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, PREFILL_WEIGHTS, VISION_WEIGHTS, Bundle
from qwen2vl_rt.number_formats import format_on_a_gpu
from qwen2vl_rt.plan import MemoryPlan, kv_bytes_per_token, patches_at_once, pictures_of_prompts
from qwen2vl_rt.processing.device_frames import LARGEST_UPLOAD
from qwen2vl_rt.session_limits import SessionLimits

# Repeated scales of 8-bit weights (lowering/int8_weights.py): 2 bytes a block.
INT8_SCALES = 1 + 2 / _core.BLOCK


def plan_cuda(bundle: Bundle, limits: SessionLimits, memory_limit: int | None = None) -> MemoryPlan:
    """Plan a session: the GPU's memory, and the process's where they share it. See `Backend.plan`."""
    limit = free_device_memory() if memory_limit is None else memory_limit
    return MemoryPlan(limits, host_parts(bundle) | _device_parts(bundle, limits), limit)


def _device_parts(bundle: Bundle, limits: SessionLimits) -> dict[str, int]:
    """Bytes by part on the GPU, at the limits in full use. The token table is on the host: `host_parts`."""
    geometry = bundle.geometry
    decoder, vision = geometry.decoder, geometry.vision
    item = format_on_a_gpu(bundle.precision).item_bytes
    sizes = {name: entry.size for name, entry in bundle.files.items()}
    int8 = INT8_SCALES if bundle.quantized else 1.0
    lm_head = sizes[EMBEDDING] if decoder.tied_embedding else 0
    parts = {
        "CUDA context": CONTEXT_BYTES,
        "decoder weights": round(sizes[DECODER_WEIGHTS] * (int8 if bundle.precision == "int8" else 1))
        + lm_head,
        "vision weights": round(sizes[VISION_WEIGHTS] * int8),
    }
    if PREFILL_WEIGHTS in sizes:  # a decoder of its own for prompts, with the last product again
        parts["prompt weights"] = round(sizes[PREFILL_WEIGHTS] * int8) + lm_head
    tokens = max(min(limits.prefill_chunk, limits.max_length), limits.max_batch)
    # Gate, up, their sigmoid and product, the residual stream, q, k, v and norms. A step keeps what each
    # layer gives: gated, the residual stream twice, q and what it attended to, k and v.
    activations = tokens * (4 * decoder.mlp_size + 8 * decoder.hidden_size) * item
    results = decoder.layers * (decoder.mlp_size + 6 * decoder.hidden_size) * limits.max_batch * item
    # One matrix' dequantized weights at a time for prompts, and one for steps of many rows, the token table's
    # among them.
    unpacked = decoder.mlp_size
    if limits.max_batch > _core.FEW_LINEAR_ROWS:
        unpacked += max(decoder.mlp_size, decoder.vocab_size)
    largest_matrices = decoder.hidden_size * unpacked * 2 * bundle.quantized
    # Logits as the graph has them and in float32, penalized ones, counts and partial sums.
    sampling = limits.max_batch * decoder.vocab_size * (item + 4 + 4 + 4 + 1)
    # What a block of the tower holds at its widest, as ONNX Runtime's arena keeps it; products of codes take
    # their bias in, and write the merger's largest matrix out in 16 bits.
    if bundle.quantized:
        values = vision.patch_values + vision.embed_dim + 3 * vision.mlp_size
    else:
        values = vision.patch_values + 3 * vision.embed_dim + 4 * vision.mlp_size
    merger = (vision.embed_dim * vision.merge_size**2) ** 2 * 2 * bundle.quantized
    return parts | {
        "KV cache": limits.max_batch * limits.max_length * kv_bytes_per_token(geometry, item),
        "prefill and decode": activations + results + largest_matrices + sampling,
        "vision": patches_at_once(geometry, limits) * values * item + merger + LARGEST_UPLOAD,
        # A video's patches are made on the host, in float32.
        "pictures of prompts": pictures_of_prompts(geometry, limits, 4 if shares_memory() else item),
    }
