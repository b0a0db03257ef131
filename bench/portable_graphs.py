"""A bundle's graphs as they are (no lowering) on ONNX Runtime's CPU.

What a backend does differently, and what a precision changes, is measured against these.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from qwen2vl_rt.backends.cpu.onnx_session import EXACT_INT8
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.geometry import DecoderGeometry


def open_portable(bundle: Bundle, file: str, threads: int = 2) -> onnxruntime.InferenceSession:
    """A graph of the bundle, ready to run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # without bound buffers each cache update warns that it copies
    options.add_session_config_entry(*EXACT_INT8)
    return onnxruntime.InferenceSession(bundle.file(file), options, ["CPUExecutionProvider"])


class DecoderSteps:
    """Steps of decoder graphs with float32 inputs over one cache of `rows` x `capacity` positions."""

    def __init__(self, geometry: DecoderGeometry, rows: int, capacity: int):
        shape = (rows, geometry.kv_heads, capacity, geometry.head_dim)
        # Garbage in what was never written must not matter.
        self.cache = {
            f"{kind}.{i}": np.full(shape, 1e3, np.float32) for i in range(geometry.layers) for kind in "kv"
        }

    def step(
        self,
        session: onnxruntime.InferenceSession,
        embeddings: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        past_length: np.ndarray,
        logit_rows: np.ndarray,
    ) -> np.ndarray:
        """Run one step and keep its keys and values.

        embeddings [B, T, H], cos and sin [B, T, head_dim / 2], past_length [B], logit_rows [B, K] ->
        logits [B, K, V].
        """
        feeds = {
            "inputs_embeds": np.ascontiguousarray(embeddings, np.float32),
            "cos": cos,
            "sin": sin,
            "past_length": np.asarray(past_length, np.int64),
            "logit_rows": np.asarray(logit_rows, np.int64),
            **{f"past_{name}": value for name, value in self.cache.items()},
        }
        logits, *present = session.run(["logits", *(f"present_{name}" for name in self.cache)], feeds)
        self.cache = dict(zip(self.cache, present, strict=True))
        return logits
