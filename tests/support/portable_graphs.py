"""A bundle's portable graphs with cos and sin tables in plain numpy."""

from __future__ import annotations

import numpy as np

from bench.portable_graphs import DecoderSteps, open_portable
from qwen2vl_rt.bundle import DECODER_GRAPH, EMBEDDING, VISION_GRAPH, Bundle


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
        self.session = open_portable(bundle, VISION_GRAPH)

    def __call__(self, patches: np.ndarray, grid_h: int, grid_w: int) -> np.ndarray:
        """Encode patches [N, h*w, values] of N pictures of one grid: [N, h*w/4, H]."""
        cos, sin = vision_rope_tables(grid_h, grid_w, self.geometry.head_dim, self.geometry.merge_size)
        tables = {"cos": cos, "sin": sin}
        tables = {name: np.broadcast_to(t, (len(patches), *t.shape)) for name, t in tables.items()}
        return self.session.run(None, {"patches": patches, **tables})[0]


class PortableDecoder(DecoderSteps):
    """decoder.onnx (or `graph`) of a bundle with float32 inputs; its cache is `rows` x `capacity`.

    `embedding` is the table where the bundle has it in float32, else None.
    """

    def __init__(self, bundle: Bundle, rows: int, capacity: int, graph: str = DECODER_GRAPH):
        self.geometry = g = bundle.geometry.decoder
        super().__init__(g, rows, capacity)
        self.session = open_portable(bundle, graph)
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
        cos, sin = (np.stack(table) for table in zip(*tables, strict=True))
        return self.step(self.session, embeddings, cos, sin, past_length, logit_rows)
