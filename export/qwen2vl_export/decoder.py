"""The language model as an ONNX graph: embeddings and a KV cache in, logits of the rows asked for out.

Shapes: B rows of the batch, T tokens of this step, S the cache's capacity, K rows of logits, H the hidden
size, D the head size, V the vocabulary. Positions come in as cos and sin (the M-RoPE table is the
caller's), so that attention stays generic; what may be attended to follows from the order in the sequence
alone, never from positions.

    logits = lm_head(norm(layer_n(... layer_1(x))))
    layer(x): x += attention(norm(x)); x += mlp(norm(x))
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from onnx import TensorProto

from qwen2vl_export.graph import Graph, Weight, float32_softmax
from qwen2vl_export.linear import linear, table, table_product
from qwen2vl_export.precisions import FORMS
from qwen2vl_rt.bundle import DECODER_WEIGHTS, EMBEDDING, PREFILL_WEIGHTS
from qwen2vl_rt.geometry import DecoderGeometry
from qwen2vl_rt.graph_format import (
    COS,
    HEAD_INPUT,
    INPUTS_EMBEDS,
    LM_HEAD,
    LOGIT_ROWS,
    LOGITS,
    PAST_LENGTH,
    PRESENT_LENGTH,
    SIN,
    TOKENS,
    cache_tensors,
    cached_keys,
    cached_values,
)

EMBEDDING_SOURCE, LM_HEAD_SOURCE = "model.embed_tokens.weight", "lm_head.weight"
EIGHT_BIT_LAYERS = 2  # in int4: what rounding does to the last layers reaches the logits as it is


def decoder_graph(
    geometry: DecoderGeometry, precision: str, four_bits: Container[str] = frozenset()
) -> Graph:
    """Return the decoder's graph, its weights declared; docs/bundle-format.md lists inputs and outputs.

    In int4 the last EIGHT_BIT_LAYERS (at most half of all) have 8 bit, but for the checkpoint's matrices in
    `four_bits`.
    """
    count = min(EIGHT_BIT_LAYERS, geometry.layers // 2) if FORMS[precision].decoder == "int4" else 0
    first = geometry.layers - count
    wide = tuple(f"model.layers.{i}." for i in range(first, geometry.layers))

    def eight_bits(source: str) -> bool:
        return source.startswith(wide) and source not in four_bits

    graph = Graph("decoder", precision, DECODER_WEIGHTS, FORMS[precision].decoder, eight_bits)
    return _build(graph, geometry)


def prefill_graph(geometry: DecoderGeometry, precision: str) -> Graph | None:
    """Return the decoder's graph again in the form for prompts, where the precision has one for them."""
    form = FORMS[precision].prefill
    return _build(Graph("prefill", precision, PREFILL_WEIGHTS, form), geometry) if form else None


def _build(graph: Graph, geometry: DecoderGeometry) -> Graph:
    hidden, half = geometry.hidden_size, geometry.head_dim // 2

    x = graph.input(INPUTS_EMBEDS, ["B", "T", hidden])
    cos = graph.input(COS, ["B", "T", half])
    sin = graph.input(SIN, ["B", "T", half])
    past_length = graph.input(PAST_LENGTH, ["B"], TensorProto.INT64)
    logit_rows = graph.input(LOGIT_ROWS, ["B", "K"], TensorProto.INT64)

    tokens = graph.op("Shape", TOKENS, x, start=1, end=2)  # [1], the number T
    present_length = graph.op("Add", PRESENT_LENGTH, past_length, tokens)  # [B]

    step = _Step(cos, sin, past_length, present_length)
    for i in range(geometry.layers):
        x = _attention(graph, geometry, i, x, step)
        x = _mlp(graph, geometry, i, x)

    logits = _head(graph, geometry, x, logit_rows)
    graph.output(logits, ["B", "K", geometry.vocab_size], TensorProto.FLOAT)
    for names in cache_tensors(geometry.layers):
        graph.output(names.present, _cache_shape(geometry))
    return graph


def embedding_weights(geometry: DecoderGeometry, precision: str) -> list[Weight]:
    """Return what the embedding's file holds: the table, in the form that `lm_head` has.

    The names are the graph's, so that a tied lm_head is these very weights.
    """
    graph = Graph("embedding", precision, EMBEDDING, FORMS[precision].decoder)
    table(graph, LM_HEAD, EMBEDDING_SOURCE, geometry.vocab_size, geometry.hidden_size, EMBEDDING)
    return graph.weights


class _Step(NamedTuple):
    """Tensors of a step that every layer's attention reads."""

    cos: str
    sin: str
    past_length: str
    present_length: str


def _cache_shape(geometry: DecoderGeometry) -> list[str | int]:
    return ["B", geometry.kv_heads, "S", geometry.head_dim]


def _attention(graph: Graph, geometry: DecoderGeometry, layer: int, x: str, step: _Step) -> str:
    """x + o(attention(q, k, v)), grouped-query, causal over the tokens that the row's cache holds."""
    name, source = f"layers.{layer}.attention", f"model.layers.{layer}.self_attn"
    hidden, head_dim = geometry.hidden_size, geometry.head_dim
    heads, kv_heads = geometry.heads, geometry.kv_heads

    normed = _norm(graph, geometry, f"{name}.norm", x, f"model.layers.{layer}.input_layernorm")
    q = linear(graph, f"{name}.q", normed, f"{source}.q_proj", hidden, heads * head_dim, bias=True)
    k = linear(graph, f"{name}.k", normed, f"{source}.k_proj", hidden, kv_heads * head_dim, bias=True)
    v = linear(graph, f"{name}.v", normed, f"{source}.v_proj", hidden, kv_heads * head_dim, bias=True)

    q = graph.to_heads(f"{name}.q", q, heads, head_dim)  # [B, heads, T, D]
    k = graph.to_heads(f"{name}.k", k, kv_heads, head_dim)  # [B, kv_heads, T, D]
    v = graph.to_heads(f"{name}.v", v, kv_heads, head_dim)  # [B, kv_heads, T, D]
    q = graph.op("RotaryEmbedding", f"{name}.q.rotated", q, step.cos, step.sin, interleaved=0)
    k = graph.op("RotaryEmbedding", f"{name}.k.rotated", k, step.cos, step.sin, interleaved=0)

    # The cache: row b takes this step's keys and values from past_length[b] on.       [B, kv_heads, S, D]
    keys, values = cached_keys(layer), cached_values(layer)
    past_k = graph.input(keys.past, _cache_shape(geometry))
    past_v = graph.input(values.past, _cache_shape(geometry))
    k = graph.op("TensorScatter", keys.present, past_k, k, step.past_length, axis=2, mode="linear")
    v = graph.op("TensorScatter", values.present, past_v, v, step.past_length, axis=2, mode="linear")

    # Token t of row b sees the cache's positions 0 .. past_length[b] + t.              [B, heads, T, D]
    y = graph.op(
        "Attention",
        f"{name}.scores",
        q,
        k,
        v,
        "",
        "",
        "",
        step.present_length,
        is_causal=1,
        **float32_softmax(graph),
    )
    y = graph.from_heads(name, y, heads * head_dim)  # [B, T, heads * D]
    y = linear(graph, f"{name}.o", y, f"{source}.o_proj", heads * head_dim, hidden, bias=False)
    return graph.op("Add", f"{name}.residual", x, y)  # [B, T, H]


def _mlp(graph: Graph, geometry: DecoderGeometry, layer: int, x: str) -> str:
    """x + down(silu(gate(norm x)) * up(norm x)): SwiGLU."""
    name, source = f"layers.{layer}.mlp", f"model.layers.{layer}.mlp"
    hidden, width = geometry.hidden_size, geometry.mlp_size

    normed = _norm(graph, geometry, f"{name}.norm", x, f"model.layers.{layer}.post_attention_layernorm")
    gate = linear(
        graph, f"{name}.gate", normed, f"{source}.gate_proj", hidden, width, bias=False
    )  # [B, T, M]
    up = linear(graph, f"{name}.up", normed, f"{source}.up_proj", hidden, width, bias=False)  # [B, T, M]
    silu = graph.op("Mul", f"{name}.silu", gate, graph.op("Sigmoid", f"{name}.sigmoid", gate))
    y = graph.op("Mul", f"{name}.product", silu, up)
    y = linear(graph, f"{name}.down", y, f"{source}.down_proj", width, hidden, bias=False)
    return graph.op("Add", f"{name}.residual", x, y)  # [B, T, H]


def _head(graph: Graph, geometry: DecoderGeometry, x: str, logit_rows: str) -> str:
    """Logits of the K rows asked for: float32 [B, K, V].

    The rows are taken before the last norm, so that neither the norm nor the [V, H] product sees the
    others. The product is a Gemm over the table as the checkpoint has it, [V, H]: a tied table serves here
    and as embedding.
    """
    hidden, vocab = geometry.hidden_size, geometry.vocab_size
    rows = graph.op("Unsqueeze", "head.row_indices", logit_rows, graph.integers(-1))  # [B, K, 1]
    x = graph.op("GatherND", "head.rows", x, rows, batch_dims=1)  # [B, K, H]
    x = _norm(graph, geometry, "head.norm", x, "model.norm")
    x = graph.op("Reshape", HEAD_INPUT, x, graph.integers(-1, hidden))  # [B*K, H]
    # Stored once: in the embedding's file where it is the embedding, and never with the prompt's weights.
    source, file = (
        (EMBEDDING_SOURCE, EMBEDDING) if geometry.tied_embedding else (LM_HEAD_SOURCE, DECODER_WEIGHTS)
    )
    x = table_product(graph, LM_HEAD, x, source, vocab, hidden, file)  # [B*K, V]
    shape = graph.op(
        "Concat",
        "head.shape",
        graph.op("Shape", "head.rows_shape", logit_rows),
        graph.integers(vocab),
        axis=0,
    )
    if graph.element_type == TensorProto.FLOAT:
        return graph.op("Reshape", LOGITS, x, shape)  # [B, K, V]
    x = graph.op("Reshape", "head.logits", x, shape)
    return graph.op("Cast", LOGITS, x, to=TensorProto.FLOAT)


def _norm(graph: Graph, geometry: DecoderGeometry, name: str, x: str, source: str) -> str:
    """RMS norm over the hidden size; the statistics are float32 in every precision (stash_type)."""
    scale = graph.weight(f"{name}.weight", [geometry.hidden_size], f"{source}.weight")
    return graph.op("RMSNormalization", name, x, scale, axis=-1, epsilon=geometry.rms_norm_eps, stash_type=1)
