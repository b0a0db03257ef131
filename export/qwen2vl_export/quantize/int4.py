"""The int4 form of a layer: GPTQ on what the layers before it, already quantized, give; 8-bit blocks to
nearest, where a layer has those.
"""

from __future__ import annotations

import numpy as np

from qwen2vl_export.graph import SCALE, ZERO_POINT
from qwen2vl_export.quantize import gptq
from qwen2vl_export.quantize.forms import nearest_blocks, packed
from qwen2vl_export.quantize.network import Group
from qwen2vl_export.quantize.parameters import Parameters


class Int4Linear:
    """A `network.Linear` that quantizes the matrices it is asked for; `stored` collects their tensors.

    It runs two streams, one behind the other: the tokens as the layers quantized so far make them, and as the
    checkpoint itself does. A matrix is rounded on the first, to give the outputs of the second.
    """

    def __init__(self, parameters: Parameters, weights: np.ndarray):
        """`weights` [T] say how much the error at each token counts."""
        self._parameters, self._weights = parameters, weights
        self.stored: dict[str, np.ndarray] = {}

    def __call__(self, group: Group, x: np.ndarray) -> list[np.ndarray]:
        """Quantize the group's matrices and return their outputs for both streams, [2 T, K] -> [2 T, N]."""
        own, exact = np.split(x, 2)
        outputs = sum(self._parameters.shape(layer)[0] for layer in group.layers)
        factors = gptq.parts(own, self._weights)
        loss = gptq.Loss.of(own, exact, self._weights, outputs, factors)
        return [self._quantize(layer, loss, factors) for layer in group.layers]

    def _quantize(self, layer: str, loss: gptq.Loss, factors: list[gptq.Part]) -> np.ndarray:
        outputs, _ = self._parameters.shape(layer)
        y = np.empty((2, len(loss.x), outputs), np.float32)
        bits = self._parameters.bits(layer)
        kept, pieces = self._parameters.kept(layer) if bits == 4 else None, []
        for rows, matrix in self._parameters.pieces(layer):
            y[1, :, rows] = loss.exact @ matrix.T
            if kept is not None:
                blocks = kept[rows]
            else:
                matrix = loss.corrected(matrix, y[1, :, rows], factors)
                blocks = gptq.quantize(matrix, factors) if bits == 4 else nearest_blocks(matrix, 8)
            y[0, :, rows] = loss.x @ blocks.dequantized().T
            pieces.append(blocks)
        codes, scales, zero_points = (
            np.concatenate([getattr(piece, name) for piece in pieces])
            for name in ("codes", "scales", "zero_points")
        )
        self.stored[f"{layer}.weight"] = packed(codes) if bits == 4 else codes
        self.stored[f"{layer}.weight{SCALE}"] = scales
        self.stored[f"{layer}.weight{ZERO_POINT}"] = packed(zero_points) if bits == 4 else zero_points
        y = y.reshape(-1, outputs)
        bias = self._parameters.bias(layer)
        return y if bias is None else y + bias
