"""What the exporter's graphs and all who run them agree on: ONNX's version, names of inputs and outputs.

docs/bundle-format.md gives the shapes. Tensors within the graphs are named here where others find them.
"""

from __future__ import annotations

from typing import NamedTuple

OPSET = 24
IR_VERSION = 12  # the one that opset 24 was released with; a newer one would shut out engines for nothing

# The decoder's inputs beside its cache, and its output.
INPUTS_EMBEDS, COS, SIN = "inputs_embeds", "cos", "sin"
PAST_LENGTH, LOGIT_ROWS = "past_length", "logit_rows"
STEP_INPUTS = (INPUTS_EMBEDS, COS, SIN, PAST_LENGTH, LOGIT_ROWS)
LOGITS = "logits"

# Within the decoder.
TOKENS = "tokens"
"""The number T, int64 [1]."""
PRESENT_LENGTH = "present_length"
"""past_length + T, int64 [B]."""
HEAD_INPUT = "head.flat"
"""The normalised rows that logits are wanted for, [B * K, hidden]."""
LM_HEAD = "lm_head"
"""Their product with the table, [B * K, vocabulary]: the memory of [B, K, vocabulary]."""

# The vision tower's; COS and SIN are its inputs, too.
PATCHES, VISUAL_EMBEDDINGS = "patches", "visual_embeddings"


class CacheTensors(NamedTuple):
    """The names that one layer's keys have, or its values."""

    past: str
    """Input: the cache's, [B, kv_heads, S, head_dim]."""
    present: str
    """Output: the same with this step's; the memory of `past`."""
    new: str
    """Output of TensorRT's form "primitives" instead: this step's alone, [B, kv_heads, T, head_dim]."""


def cached_keys(layer: int) -> CacheTensors:
    """Of a layer, from 0."""
    return _cache_tensors("k", layer)


def cached_values(layer: int) -> CacheTensors:
    """Of a layer, from 0."""
    return _cache_tensors("v", layer)


def cache_tensors(layers: int) -> list[CacheTensors]:
    """Keys and values of each layer: the order of the graph's inputs and outputs."""
    return [part(layer) for layer in range(layers) for part in (cached_keys, cached_values)]


def _cache_tensors(part: str, layer: int) -> CacheTensors:
    return CacheTensors(*(f"{kind}_{part}.{layer}" for kind in CacheTensors._fields))
