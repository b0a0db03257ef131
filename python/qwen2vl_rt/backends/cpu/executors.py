"""The decoder and the vision tower in ONNX Runtime on the CPU, the KV cache updated in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from qwen2vl_rt import _core
from qwen2vl_rt.backends.cpu.onnx_session import OnnxSession, bind
from qwen2vl_rt.bundle import DECODER_GRAPH, PREFILL_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.graph_format import (
    COS,
    HEAD_INPUT,
    LM_HEAD,
    LOGITS,
    PATCHES,
    SIN,
    STEP_INPUTS,
    VISUAL_EMBEDDINGS,
    cached_keys,
    cached_values,
)
from qwen2vl_rt.lowering.cpu import lower_decoder, lower_vision
from qwen2vl_rt.lowering.head import split_head
from qwen2vl_rt.weights import load_graph

# Shapes of steps kept bound: drafts of every length, some batches, some chunks of prompts.
KEPT_BINDINGS = _core.LONGEST_DRAFT + 16


class CpuDecoder(_core.Executor):
    """Runs decoder steps over the rows of a cache.

    Where the bundle has a graph for prompts (int4-int8), a prompt's tokens go through it and an answer's own
    through the other, both over one cache; they share the last product.

    Args:
        bundle: the model.
        cache: float32 KV cache whose rows the steps name.
        threads: threads of one operator.
    """

    def __init__(self, bundle: Bundle, cache: _core.KVCache, threads: int) -> None:
        super().__init__()
        if PREFILL_GRAPH in bundle.files:
            head, (prompt, answer) = _load_cut(bundle, (PREFILL_GRAPH, DECODER_GRAPH), threads)
            self._prompt = _DecoderGraph(prompt, cache, head)
            self._answer = _DecoderGraph(answer, cache, head)
        else:
            self._prompt = self._answer = _DecoderGraph(_load(bundle, DECODER_GRAPH, threads), cache)

    def run(self, step: _core.DecoderStep) -> None:
        """Fill `step.logits`; append the step's keys and values to its cache rows."""
        (self._prompt if step.prompt else self._answer).run(step)


class _DecoderGraph:
    """One graph of the decoder, whole or cut at its head.

    The generation loop (C++) keeps every buffer of a step at its address, so a binding serves all steps of
    one shape, and a decode step binds nothing: shapes in use, drafts of every length among them, stay bound.
    """

    def __init__(self, layers: OnnxSession, cache: _core.KVCache, head: OnnxSession | None = None) -> None:
        self._layers = layers
        self._head = head
        self._cache = cache
        self._bindings: dict[tuple[int, ...], tuple[list[tuple[OnnxSession, object]], np.ndarray | None]] = {}

    def run(self, step: _core.DecoderStep) -> None:
        shape = (step.first_row, step.rows, step.tokens, step.logit_row_count)
        if shape not in self._bindings:
            if len(self._bindings) == KEPT_BINDINGS:
                del self._bindings[next(iter(self._bindings))]
            self._bindings[shape] = self._bind(step)
        runs, _ = self._bindings[shape]
        for session, binding in runs:
            session.run(binding)

    def _bind(self, step: _core.DecoderStep) -> tuple[list[tuple[OnnxSession, object]], np.ndarray | None]:
        """What runs a step of this shape, and the memory of its own that it needs."""
        layers = self._layers.binding()
        for name in STEP_INPUTS:
            bind(layers, getattr(step, name), input=name)
        rows = slice(step.first_row, step.first_row + step.rows)
        for layer in range(self._cache.layers):
            keys, values = cached_keys(layer), cached_values(layer)
            bind(layers, self._cache.keys(layer)[rows], keys.past, keys.present)
            bind(layers, self._cache.values(layer)[rows], values.past, values.present)
        if self._head is None:
            bind(layers, step.logits, output=LOGITS)
            return [(self._layers, layers)], None
        rows_of_logits = step.rows * step.logit_row_count
        hidden = np.empty((rows_of_logits, step.inputs_embeds.shape[-1]), np.float32)
        head = self._head.binding()
        bind(layers, hidden, output=HEAD_INPUT)
        bind(head, hidden, input=HEAD_INPUT)
        bind(head, step.logits.reshape(rows_of_logits, -1), output=LM_HEAD)
        return [(self._layers, layers), (self._head, head)], hidden


class CpuVision:
    """Runs the vision tower over pictures or frame pairs of one size.

    Args:
        bundle: the model.
        threads: threads of one operator.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._session = _load(bundle, VISION_GRAPH, threads)
        self._merged_patches = bundle.geometry.vision.merge_size**2
        self._hidden_size = bundle.geometry.decoder.hidden_size

    def encode(self, patches: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """Encode N equal-size pictures or frame pairs.

        Args:
            patches: float32 [N, P, patch_values], in merge order.
            cos: float32 [P, head_dim/2], the picture's rotary table.
            sin: as `cos`.

        Returns:
            Visual embeddings, float32 [N, P / merge_size^2, hidden_size].
        """
        n, count, _ = patches.shape
        embeddings = np.empty((n, count // self._merged_patches, self._hidden_size), np.float32)
        tables = [np.ascontiguousarray(np.broadcast_to(table, (n, *table.shape))) for table in (cos, sin)]
        binding = self._session.binding()
        bind(binding, np.ascontiguousarray(patches), input=PATCHES)
        bind(binding, tables[0], input=COS)
        bind(binding, tables[1], input=SIN)
        bind(binding, embeddings, output=VISUAL_EMBEDDINGS)
        self._session.run(binding)
        return embeddings


def _lowered(bundle: Bundle, file: str) -> tuple[ModelProto, dict[str, np.ndarray]]:
    model, weights = load_graph(bundle, file)
    if file == VISION_GRAPH:
        lower_vision(model, weights, bundle.geometry)
    else:
        lower_decoder(model, weights, bundle.geometry, prompts=file == PREFILL_GRAPH)
    return model, weights


def _load(bundle: Bundle, file: str, threads: int) -> OnnxSession:
    """A graph, lowered and loaded."""
    return OnnxSession(*_lowered(bundle, file), bundle.path, threads, pack=bundle.quantized)


def _load_cut(bundle: Bundle, files: Sequence[str], threads: int) -> tuple[OnnxSession, list[OnnxSession]]:
    """The head that decoders share, and each one's layers, lowered and loaded."""
    decoder = bundle.geometry.decoder
    layers = []
    for file in files:
        model, weights = _lowered(bundle, file)
        head = split_head(model, decoder.hidden_size, decoder.vocab_size)
        layers.append(OnnxSession(model, weights, bundle.path, threads, pack=bundle.quantized))
    return OnnxSession(head, weights, bundle.path, threads, pack=bundle.quantized), layers
