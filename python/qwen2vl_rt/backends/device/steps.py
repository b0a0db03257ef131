"""What every engine on a device is given for a decoder step, and the decoder and cache around it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.graph_format import (
    COS,
    INPUTS_EMBEDS,
    LOGIT_ROWS,
    LOGITS,
    PAST_LENGTH,
    PRESENT_LENGTH,
    SIN,
    cached_keys,
    cached_values,
)
from qwen2vl_rt.lowering.group_query_attention import LAST, LONGEST
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import embedding_table


class Tensor(NamedTuple):
    """Memory that a graph reads or writes as its input or output `name`."""

    name: str
    shape: tuple[int, ...]
    pointer: int
    output: bool = False
    on_host: bool = False


class NamedTensors(Protocol):
    """Whatever has inputs and outputs with names."""

    def has(self, name: str) -> bool:
        """Whether the graph has an input or output of this name."""


class StepTensors:
    """What a decoder step reads and writes: the fixed buffers of a `_core.DeviceDecoder` and its cache.

    Args:
        bundle: the model.
        decoder: whose buffers are bound.
        cache: the keys and values, updated in place.
        dtype: "float32", "bfloat16" or "float16", the cache's and the buffers'.
    """

    def __init__(
        self, bundle: Bundle, decoder: _core.DeviceDecoder, cache: _core.DeviceCache, dtype: str
    ) -> None:
        self._buffers = decoder.buffers
        self._cache = cache
        self._geometry = bundle.geometry.decoder
        self._item = format_named(dtype).item_bytes
        self.constant: list[Tensor] = []
        """Inputs that are the same in every step: weights that are not the graph's own."""

    def of(
        self, session: NamedTensors, first_row: int, rows: int, tokens: int, longest: int = 0
    ) -> list[Tensor]:
        """Of a step with B = `rows` and T = `tokens`; `longest`: the host address of the longest length."""
        decoder, at, cache = self._geometry, self._buffers, self._cache
        half = decoder.head_dim // 2
        inputs = [
            Tensor(INPUTS_EMBEDS, (rows, tokens, decoder.hidden_size), at[INPUTS_EMBEDS]),
            Tensor(COS, (rows, tokens, half), at[COS]),
            Tensor(SIN, (rows, tokens, half), at[SIN]),
            Tensor(PAST_LENGTH, (rows,), at[PAST_LENGTH]),
            Tensor(LOGIT_ROWS, (rows, 1), at[LOGIT_ROWS]),
            Tensor(LAST, (rows,), at["last_position"]),
            Tensor(PRESENT_LENGTH, (rows,), at[PRESENT_LENGTH]),
            Tensor(LONGEST, (), longest, on_host=True),
        ]
        tensors = [tensor for tensor in (*inputs, *self.constant) if session.has(tensor.name)]
        tensors.append(Tensor(LOGITS, (rows, 1, decoder.vocab_size), at[LOGITS], output=True))
        shape = (rows, decoder.kv_heads, cache.capacity, decoder.head_dim)
        skip = first_row * decoder.kv_heads * cache.capacity * decoder.head_dim * self._item
        for layer in range(decoder.layers):
            keys, values = cached_keys(layer), cached_values(layer)
            for names, pointer in ((keys, cache.keys(layer)), (values, cache.values(layer))):
                tensors.append(Tensor(names.past, shape, pointer + skip))
                tensors.append(Tensor(names.present, shape, pointer + skip, output=True))
        return tensors


def device_steps(
    bundle: Bundle, limits: SessionLimits, device: _core.Device, dtype: str
) -> tuple[_core.DeviceDecoder, _core.DeviceCache]:
    """The bundle's decoder on a device, still without its engine, and the cache for its rows.

    `dtype`: "float32", "bfloat16" or "float16", of cache, embeddings, cos and sin.
    """
    decoder = bundle.geometry.decoder
    cache = _core.DeviceCache(
        device, decoder.layers, limits.max_batch, decoder.kv_heads, limits.max_length, decoder.head_dim, dtype
    )
    table = embedding_table(bundle)
    rope = _core.RopeTable(decoder.head_dim, decoder.rope_theta, decoder.mrope_section)
    return _core.DeviceDecoder(device, cache, table, rope, limits.prefill_chunk, dtype), cache
