"""How much a request has to multiply and to read: what the machine's limits are applied to."""

from __future__ import annotations

from dataclasses import dataclass

from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, PREFILL_WEIGHTS, VISION_WEIGHTS, Bundle
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.plan import kv_bytes_per_token


@dataclass(frozen=True)
class Work:
    """One pass over a graph. An operation is a multiplication or an addition."""

    weight_operations: float
    """Products of activations with weights, at the weights' precision."""
    attention_operations: float
    """Products of activations with activations (scores and values), in float32."""
    read_bytes: float
    """Weights, and keys and values of the past, each read once."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.weight_operations + other.weight_operations,
            self.attention_operations + other.attention_operations,
            self.read_bytes + other.read_bytes,
        )


def decoder_parameters(geometry: Geometry) -> int:
    """Weights that one prompt token multiplies: all layers, without embedding and lm_head."""
    d = geometry.decoder
    attention = d.hidden_size * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
    return d.layers * (attention + 3 * d.hidden_size * d.mlp_size)


def vision_flops(geometry: Geometry, grid_thw: tuple[int, int, int]) -> int:
    """Operations of the tower's matrix products and of its attention, together."""
    return _vision_weight_operations(geometry, grid_thw) + _vision_attention_operations(geometry, grid_thw)


def _vision_weight_operations(geometry: Geometry, grid_thw: tuple[int, int, int]) -> int:
    v, (t, h, w) = geometry.vision, grid_thw
    merged = v.embed_dim * v.merge_size**2
    layer = 4 * v.embed_dim**2 + 2 * v.embed_dim * v.mlp_size
    merger = merged * (merged + geometry.decoder.hidden_size) // v.merge_size**2
    return 2 * t * h * w * (v.patch_values * v.embed_dim + v.depth * layer + merger)


def _vision_attention_operations(geometry: Geometry, grid_thw: tuple[int, int, int]) -> int:
    v, (t, h, w) = geometry.vision, grid_thw
    return 2 * t * (h * w) ** 2 * 2 * v.embed_dim * v.depth


def vision_work(bundle: Bundle, grid_thw: tuple[int, int, int]) -> Work:
    """One picture (or t frame pairs of a video) through the vision tower."""
    return Work(
        _vision_weight_operations(bundle.geometry, grid_thw),
        _vision_attention_operations(bundle.geometry, grid_thw),
        bundle.files[VISION_WEIGHTS].size * _widening(bundle),
    )


def prefill_work(bundle: Bundle, tokens: int) -> Work:
    """A prompt of `tokens`, without a past; causal attention multiplies half of the square."""
    d = bundle.geometry.decoder
    weights = PREFILL_WEIGHTS if PREFILL_WEIGHTS in bundle.files else DECODER_WEIGHTS
    return Work(
        2 * tokens * decoder_parameters(bundle.geometry),
        2 * tokens**2 * d.heads * d.head_dim * d.layers,
        bundle.files[weights].size * _widening(bundle),
    )


def decode_work(bundle: Bundle, context: int, batch: int) -> Work:
    """One token for each of `batch` answers whose cache holds `context` tokens each."""
    d = bundle.geometry.decoder
    read = bundle.files[DECODER_WEIGHTS].size
    if d.tied_embedding:  # lm_head is the embedding's table
        read += bundle.files[EMBEDDING].size
    return Work(
        2 * batch * (decoder_parameters(bundle.geometry) + d.vocab_size * d.hidden_size),
        4 * batch * context * d.heads * d.head_dim * d.layers,
        read * _widening(bundle) + batch * context * kv_bytes_per_token(bundle.geometry),
    )


def _widening(bundle: Bundle) -> int:
    """Bytes in memory over bytes in the bundle: the CPU widens 16-bit weights to float32."""
    return 2 if bundle.precision in ("bf16", "fp16") else 1
