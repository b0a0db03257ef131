"""How much a request has to multiply and to read: what the machine's limits are applied to."""

from __future__ import annotations

from dataclasses import dataclass

from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, PREFILL_WEIGHTS, VISION_WEIGHTS, Bundle
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.number_formats import FLOAT32, format_of_graphs
from qwen2vl_rt.plan import kv_bytes_per_token


@dataclass(frozen=True)
class Work:
    """One pass over a graph. An operation is a multiplication or an addition."""

    operations: float
    """Of the matrix products, and of attention's scores and weighted values."""
    read_bytes: float
    """Weights, and keys and values of the past, each read once."""


def decoder_parameters(geometry: Geometry) -> int:
    """Weights that one prompt token multiplies: all layers, without embedding and lm_head."""
    d = geometry.decoder
    attention = d.hidden_size * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
    return d.layers * (attention + 3 * d.hidden_size * d.mlp_size)


def vision_flops(geometry: Geometry, grid_thw: tuple[int, int, int]) -> int:
    """Operations of the tower's matrix products and of its attention, together."""
    v, (t, h, w) = geometry.vision, grid_thw
    patches, merged = h * w, v.embed_dim * v.merge_size**2
    layer = 4 * v.embed_dim**2 + 2 * v.embed_dim * v.mlp_size
    a_patch = v.patch_values * v.embed_dim + v.depth * (layer + 2 * patches * v.embed_dim)
    merger = merged * (merged + geometry.decoder.hidden_size) // v.merge_size**2
    return 2 * t * patches * (a_patch + merger)


def vision_work(bundle: Bundle, grid_thw: tuple[int, int, int]) -> Work:
    """One picture (or t frame pairs of a video) through the vision tower."""
    return Work(
        vision_flops(bundle.geometry, grid_thw),
        bundle.files[VISION_WEIGHTS].size * _widening(bundle),
    )


def prefill_work(bundle: Bundle, tokens: int) -> Work:
    """A prompt of `tokens`, without a past; causal attention multiplies half of the square."""
    d = bundle.geometry.decoder
    weights = PREFILL_WEIGHTS if PREFILL_WEIGHTS in bundle.files else DECODER_WEIGHTS
    return Work(
        2 * tokens * (decoder_parameters(bundle.geometry) + tokens * d.heads * d.head_dim * d.layers),
        bundle.files[weights].size * _widening(bundle),
    )


def decode_work(bundle: Bundle, context: int, batch: int) -> Work:
    """One token for each of `batch` answers whose cache holds `context` tokens each."""
    d = bundle.geometry.decoder
    read = bundle.files[DECODER_WEIGHTS].size
    if d.tied_embedding:  # lm_head is the embedding's table
        read += bundle.files[EMBEDDING].size
    parameters = decoder_parameters(bundle.geometry) + d.vocab_size * d.hidden_size
    attention = 2 * context * d.heads * d.head_dim * d.layers
    return Work(
        2 * batch * (parameters + attention),
        read * _widening(bundle) + batch * context * kv_bytes_per_token(bundle.geometry),
    )


def _widening(bundle: Bundle) -> int:
    """Bytes in memory over bytes in the bundle: the CPU widens 16-bit weights to float32."""
    return FLOAT32.item_bytes // format_of_graphs(bundle.precision).item_bytes
