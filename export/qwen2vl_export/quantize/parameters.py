"""A graph's parameters by the names they have there, read from the checkpoint when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from onnx import TensorProto

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import Weight
from qwen2vl_export.group_quantized import GroupQuantized
from qwen2vl_export.quantize.forms import kept_blocks

_PIECE = 2**25  # numbers of a matrix that are worked on at a time


class Parameters:
    """Vectors and matrices of one graph, always float32 and in the checkpoint's order [outputs, inputs]."""

    def __init__(self, checkpoint: Checkpoint, weights: Iterable[Weight]):
        self._checkpoint = checkpoint
        self._weights = {weight.name: weight for weight in weights}

    def has(self, name: str) -> bool:
        """Return whether the graph has a parameter of that name."""
        return name in self._weights

    def vector(self, name: str) -> np.ndarray:
        """Return a norm's weight or a bias."""
        weight = self._weights[name]
        return self._checkpoint.read_rows(weight, 0, weight.rows).reshape(-1).astype(np.float32)

    def bias(self, layer: str) -> np.ndarray | None:
        """Return a linear layer's bias, or None."""
        return self.vector(f"{layer}.bias") if f"{layer}.bias" in self._weights else None

    def shape(self, layer: str) -> tuple[int, int]:
        """Return a linear layer's (outputs, inputs)."""
        weight = self._weights[f"{layer}.weight"]
        return weight.rows, weight.columns

    def bits(self, layer: str) -> int:
        """Return how many bits a linear layer's codes in blocks have."""
        return 8 if self._weights[f"{layer}.weight"].element_type == TensorProto.UINT8 else 4

    def in_blocks(self, layer: str) -> bool:
        """Return whether a linear layer's codes are in blocks."""
        return self._weights[f"{layer}.weight"].element_type in (TensorProto.UINT4, TensorProto.UINT8)

    def pieces(self, layer: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a linear layer's matrix in pieces of rows: (which, float32 [rows, inputs])."""
        return pieces(self._checkpoint, self._weights[f"{layer}.weight"])

    def product(self, layer: str, x: np.ndarray) -> np.ndarray:
        """Run a linear layer: x [T, K] -> [T, N]."""
        outputs, _ = self.shape(layer)
        y = np.empty((len(x), outputs), np.float32)
        for rows, matrix in self.pieces(layer):
            y[:, rows] = x @ matrix.T
        bias = self.bias(layer)
        return y if bias is None else y + bias

    def kept(self, layer: str) -> GroupQuantized | None:
        """Return a linear layer's matrix as the checkpoint quantized it, where int4 bundles keep it so."""
        return kept_blocks(self._checkpoint.packed.get(self._weights[f"{layer}.weight"].source))


def pieces(checkpoint: Checkpoint, weight: Weight) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a weight's source in pieces of rows: (which, float32 [rows, columns])."""
    step = max(1, _PIECE // weight.columns)
    for start in range(0, weight.rows, step):
        stop = min(start + step, weight.rows)
        yield slice(start, stop), checkpoint.read_rows(weight, start, stop).astype(np.float32)
