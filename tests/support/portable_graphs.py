"""The bundle's graphs as they are (no lowering) on ONNX Runtime's CPU, and cos/sin tables in plain numpy.

What a backend does differently is measured against these.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from qwen2vl_rt.bundle import DECODER_GRAPH, EMBEDDING, VISION_GRAPH, Bundle
from qwen2vl_rt.executors.onnx_session import EXACT_INT8


def rope_tables(
    positions: np.ndarray, head_dim: int, theta: float, sections: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return cos, sin float32 [T, head_dim/2] of positions [3, T]; section j uses axis j."""
    inverse = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    axis = np.repeat(np.arange(3), sections)  # [head_dim/2]
    angles = positions[axis].T.astype(np.float32) * inverse.astype(np.float32)
    return np.cos(angles), np.sin(angles)


def vision_rope_tables(
    grid_h: int, grid_w: int, head_dim: int, merge: int = 2, theta: float = 10000.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return cos, sin float32 [h*w, head_dim/2] of a grid's patches in merge order."""
    rows, columns = np.indices((grid_h, grid_w))
    order = (grid_h // merge, merge, grid_w // merge, merge)
    rows, columns = (a.reshape(order).transpose(0, 2, 1, 3).reshape(-1, 1) for a in (rows, columns))
    inverse = 1.0 / theta ** (np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2))
    angles = np.concatenate([rows * inverse, columns * inverse], axis=1).astype(np.float32)
    return np.cos(angles), np.sin(angles)


class PortableVision:
    """vision.onnx of a bundle with float32 inputs."""

    def __init__(self, bundle: Bundle):
        self.geometry = bundle.geometry.vision
        self.session = onnxruntime.InferenceSession(bundle.file(VISION_GRAPH), _options())

    def __call__(self, patches: np.ndarray, grid_h: int, grid_w: int) -> np.ndarray:
        """Encode patches [N, h*w, values] of N pictures of one grid: [N, h*w/4, H]."""
        cos, sin = vision_rope_tables(grid_h, grid_w, self.geometry.head_dim, self.geometry.merge_size)
        tables = {"cos": cos, "sin": sin}
        tables = {name: np.broadcast_to(t, (len(patches), *t.shape)) for name, t in tables.items()}
        return self.session.run(None, {"patches": patches, **tables})[0]


class PortableDecoder:
    """decoder.onnx (or `graph`) of a bundle with float32 inputs; its cache is `rows` x `capacity`.

    `embedding` is the table where the bundle has it in float32, else None.
    """

    def __init__(self, bundle: Bundle, rows: int, capacity: int, graph: str = DECODER_GRAPH):
        self.geometry = g = bundle.geometry.decoder
        self.session = onnxruntime.InferenceSession(bundle.file(graph), _options())
        shape = (rows, g.kv_heads, capacity, g.head_dim)
        # Garbage in what was never written must not matter.
        self.cache = {
            f"{kind}.{i}": np.full(shape, 1e3, np.float32) for i in range(g.layers) for kind in ("k", "v")
        }
        self.embedding = None
        if bundle.precision == "fp32":
            table = np.fromfile(bundle.file(EMBEDDING), np.float32)
            self.embedding = table.reshape(g.vocab_size, g.hidden_size)

    def __call__(
        self, embeddings: np.ndarray, positions: np.ndarray, past_length: list[int], logit_rows: np.ndarray
    ) -> np.ndarray:
        """Run one step and keep its keys and values.

        embeddings [B, T, H], positions [3, B, T], past_length [B], logit_rows [B, K] -> logits [B, K, V].
        """
        g = self.geometry
        tables = [rope_tables(p, g.head_dim, g.rope_theta, g.mrope_section) for p in positions.swapaxes(0, 1)]
        feeds = {
            "inputs_embeds": np.ascontiguousarray(embeddings, np.float32),
            "cos": np.stack([cos for cos, _ in tables]),
            "sin": np.stack([sin for _, sin in tables]),
            "past_length": np.asarray(past_length, np.int64),
            "logit_rows": np.asarray(logit_rows, np.int64),
            **{f"past_{name}": value for name, value in self.cache.items()},
        }
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, feeds), strict=True))
        self.cache = {name: outputs[f"present_{name}"] for name in self.cache}
        return outputs["logits"]


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3  # without bound buffers each cache update warns that it copies
    options.add_session_config_entry(*EXACT_INT8)
    return options
