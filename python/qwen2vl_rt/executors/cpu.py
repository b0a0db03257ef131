"""The cpu backend: both graphs on ONNX Runtime, the KV cache updated in place."""

from __future__ import annotations

import numpy as np
import onnx

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.executors.onnx_session import OnnxSession, bind
from qwen2vl_rt.lowering.cpu import lower_decoder, lower_vision
from qwen2vl_rt.weights import map_weights


class CpuDecoder(_core.Executor):
    """Runs decoder steps over the rows of a cache.

    The generation loop (C++) calls `run` once a step; every buffer it passes keeps its address, so a binding
    serves all steps of one shape and a decode step binds nothing.

    Args:
        bundle: the model.
        cache: float32 KV cache whose rows the steps name.
        threads: threads of one operator.
    """

    def __init__(self, bundle: Bundle, cache: _core.KVCache, threads: int) -> None:
        super().__init__()
        model = onnx.load(bundle.file("decoder.onnx"), load_external_data=False)
        weights = map_weights(model, bundle.path)
        lower_decoder(model, weights, bundle.geometry)
        self._session = OnnxSession(model, weights, bundle.path, threads)
        self._layers = bundle.geometry.decoder.layers
        self._cache = cache
        self._binding = None
        self._bound_shape: tuple[int, ...] | None = None

    def run(self, step: _core.DecoderStep) -> None:
        """Fill `step.logits`; append the step's keys and values to its cache rows."""
        shape = (step.first_row, step.rows, step.tokens, step.logit_row_count)
        if shape != self._bound_shape:
            self._binding, self._bound_shape = self._bind(step), shape
        self._session.run(self._binding)

    def _bind(self, step: _core.DecoderStep) -> object:
        binding = self._session.binding()
        for name in ("inputs_embeds", "cos", "sin", "past_length", "logit_rows"):
            bind(binding, getattr(step, name), input=name)
        bind(binding, step.logits, output="logits")
        rows = slice(step.first_row, step.first_row + step.rows)
        for layer in range(self._layers):
            bind(binding, self._cache.keys(layer)[rows], f"past_k.{layer}", f"present_k.{layer}")
            bind(binding, self._cache.values(layer)[rows], f"past_v.{layer}", f"present_v.{layer}")
        return binding


class CpuVision:
    """Runs the vision tower over pictures or frame pairs of one size.

    Args:
        bundle: the model.
        threads: threads of one operator.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        model = onnx.load(bundle.file("vision.onnx"), load_external_data=False)
        weights = map_weights(model, bundle.path)
        lower_vision(model, weights, bundle.geometry)
        self._session = OnnxSession(model, weights, bundle.path, threads)
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
        bind(binding, np.ascontiguousarray(patches), input="patches")
        bind(binding, tables[0], input="cos")
        bind(binding, tables[1], input="sin")
        bind(binding, embeddings, output="visual_embeddings")
        self._session.run(binding)
        return embeddings
