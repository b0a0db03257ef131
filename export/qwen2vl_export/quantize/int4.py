"""The int4 form of a layer: GPTQ on what the layers before, already quantized, give."""

from __future__ import annotations

import numpy as np

from qwen2vl_export.quantize import gptq
from qwen2vl_export.quantize.forms import Blocks, packed
from qwen2vl_export.quantize.network import Group
from qwen2vl_export.quantize.parameters import Parameters


class Int4Linear:
    """A `network.Linear` that quantizes the matrices it is asked for; `stored` collects their tensors."""

    def __init__(self, parameters: Parameters):
        self._parameters = parameters
        self.stored: dict[str, np.ndarray] = {}

    def __call__(self, group: Group, x: np.ndarray) -> list[np.ndarray]:
        """Quantize the group's matrices and return their outputs for x [T, K]."""
        factors, outputs = None, []
        for layer in group.layers:
            blocks = self._parameters.kept(layer)
            if blocks is None:
                factors = factors or gptq.parts(x)
                pieces = [gptq.quantize(matrix, factors) for _, matrix in self._parameters.pieces(layer)]
                blocks = Blocks(*(np.concatenate(part) for part in zip(*map(_arrays, pieces), strict=True)))
            outputs.append(self._output(layer, blocks, x))
            self.stored[f"{layer}.weight"] = packed(blocks.codes)
            self.stored[f"{layer}.weight.scale"] = blocks.scales
            self.stored[f"{layer}.weight.zero_point"] = packed(blocks.zero_points)
        return outputs

    def _output(self, layer: str, blocks: Blocks, x: np.ndarray) -> np.ndarray:
        outputs, inputs = blocks.codes.shape
        y = np.empty((len(x), outputs), np.float32)
        step = max(1, 2**25 // inputs)
        for start in range(0, outputs, step):
            rows = slice(start, start + step)
            piece = Blocks(blocks.codes[rows], blocks.scales[rows], blocks.zero_points[rows])
            y[:, rows] = x @ piece.dequantized().T
        bias = self._parameters.bias(layer)
        return y if bias is None else y + bias


def _arrays(blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return blocks.codes, blocks.scales, blocks.zero_points
