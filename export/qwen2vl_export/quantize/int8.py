"""The int8 form of a layer: smoothing found on calibration inputs, then a scale an output.

An activation's scale follows its largest channel, so a channel that is always large costs all others their
precision. SmoothQuant (Xiao et al. 2023): divide the input's channels by s and multiply the matrix' columns
by it, which changes nothing in exact arithmetic. The division folds into what stands before, where that is
linear in each channel: the norm's weight (and bias), or the rows of the layer that makes the channels. In a
quantized layer a row's factor is in its scale, so the fold is exact there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qwen2vl_export.graph import SCALE, ZERO_POINT
from qwen2vl_export.quantize.forms import nearest_blocks, nearest_rows
from qwen2vl_export.quantize.network import Group
from qwen2vl_export.quantize.parameters import Parameters
from qwen2vl_rt.number_formats import SMALLEST_PEAK

STRENGTHS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # exponents that are tried; 0 is no smoothing
SAMPLE = 512  # inputs that they are judged on
OUTPUTS = 4096  # of a group's matrices, likewise


class Int8Linear:
    """A `network.Linear` that quantizes the matrices it is asked for; `stored` collects their tensors.

    `may_fold` says whether a smoothing may go into the layer or norm of that name.
    """

    def __init__(self, parameters: Parameters, may_fold: Callable[[str], bool] = lambda name: True):
        self._parameters = parameters
        self._may_fold = may_fold
        self.stored: dict[str, np.ndarray] = {}

    def __call__(self, group: Group, x: np.ndarray) -> list[np.ndarray]:
        """Quantize the group's matrices and return their outputs for x [T, K]."""
        if self._parameters.in_blocks(group.layers[0]):
            return [self._eight_bit_blocks(layer, x) for layer in group.layers]
        s = np.ones(x.shape[1], np.float32)
        if group.before is not None and self._may_fold(group.before):
            s = self._smoothing(group, x)
            self._fold(group, s)
            x = x / s
        rounded, scale = rounded_tokens(x)
        return [self._quantize(layer, s, rounded, scale) for layer in group.layers]

    def _quantize(self, layer: str, s: np.ndarray, rounded: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Quantize one matrix whose input was divided by s; return its output for rounded * scale."""
        outputs, inputs = self._parameters.shape(layer)
        codes = np.empty((inputs, outputs), np.int8)
        scales = np.empty(outputs, np.float32)
        y = np.empty((len(rounded), outputs), np.float32)
        for rows, matrix in self._parameters.pieces(layer):
            matrix *= s
            of_rows, scales[rows] = nearest_rows(matrix)
            codes[:, rows] = of_rows.T
            y[:, rows] = rounded @ of_rows.T.astype(np.float32)
        y *= scale
        y *= scales
        self.stored[f"{layer}.weight"], self.stored[f"{layer}.weight{SCALE}"] = codes, scales
        bias = self._parameters.bias(layer)
        return y if bias is None else y + bias

    def _eight_bit_blocks(self, layer: str, x: np.ndarray) -> np.ndarray:
        """Round one matrix in blocks, which leaves its input as it is; return its output."""
        outputs, _ = self._parameters.shape(layer)
        y, found = np.empty((len(x), outputs), np.float32), []
        for rows, matrix in self._parameters.pieces(layer):
            found.append(nearest_blocks(matrix, 8))
            y[:, rows] = x @ found[-1].dequantized().T
        for part, name in (("", "codes"), (SCALE, "scales"), (ZERO_POINT, "zero_points")):
            values = np.concatenate([getattr(blocks, name) for blocks in found])
            self.stored[f"{layer}.weight{part}"] = values
        bias = self._parameters.bias(layer)
        return y if bias is None else y + bias

    def _smoothing(self, group: Group, x: np.ndarray) -> np.ndarray:
        """Return the s [K] with the least error of the group's outputs (some of them, on some inputs)."""
        weights = np.zeros(x.shape[1], np.float32)
        for _, matrix in self._pieces(group):
            np.maximum(weights, np.abs(matrix).max(axis=0), out=weights)
        inputs, weights = (shared(peak, group) for peak in (np.abs(x).max(axis=0), weights))
        candidates = [_factors(inputs, weights, strength) for strength in STRENGTHS]
        sample = x[:: -(-len(x) // SAMPLE)]
        rounded = [rounded_tokens(sample / s) for s in candidates]
        errors = np.zeros(len(candidates))
        outputs = sum(self._parameters.shape(layer)[0] for layer in group.layers)
        for _, matrix in self._pieces(group):
            matrix = matrix[:: -(-outputs // OUTPUTS)]
            exact = sample @ matrix.T
            for i, (s, (steps, scale)) in enumerate(zip(candidates, rounded, strict=True)):
                codes, scales = nearest_rows(matrix * s)
                found = (steps @ codes.T.astype(np.float32)) * scale * scales
                errors[i] += np.square(found - exact, dtype=np.float64).sum()
        return candidates[int(errors.argmin())]

    def _pieces(self, group: Group) -> Iterator[tuple[slice, np.ndarray]]:
        for layer in group.layers:
            yield from self._parameters.pieces(layer)

    def _fold(self, group: Group, s: np.ndarray) -> None:
        """Divide what stands before the group by s."""
        before, rows = group.before, own(s, group)
        if f"{before}.weight{SCALE}" in self.stored:  # a layer: the channels are its last outputs
            scales = self.stored[f"{before}.weight{SCALE}"]
            factors = np.concatenate([np.ones(len(scales) - len(rows), np.float32), rows])
            self.stored[f"{before}.weight{SCALE}"] = scales / factors
            if (bias := self._parameters.bias(before)) is not None:
                self.stored[f"{before}.bias"] = bias / factors
            return
        for part in ("weight", "bias"):
            if self._parameters.has(f"{before}.{part}"):
                self.stored[f"{before}.{part}"] = self._parameters.vector(f"{before}.{part}") / rows


def _factors(inputs: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """Return s of one strength, around 1: inputs' peaks ** strength / weights' peaks ** (1 - strength)."""
    s = np.ones_like(inputs)
    if strength:
        live = (inputs > 0) & (weights > 0)
        s[live] = inputs[live] ** strength / weights[live] ** (1 - strength)
        s[live] /= np.exp(np.log(s[live]).mean())
    return np.clip(s, 1e-3, 1e3).astype(np.float32)


def rounded_tokens(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round inputs as the graph does: steps float32 [T, K] in -127..127, and their scales [T, 1]."""
    scale = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(SMALLEST_PEAK)) * np.float32(1 / 127)
    return np.rint(x / scale), scale


def shared(peak: np.ndarray, group: Group) -> np.ndarray:
    """Give copies of one channel their common peak: [K] -> [K]."""
    return spread_copies(copies(peak, group).max(axis=1), group)


def own(s: np.ndarray, group: Group) -> np.ndarray:
    """Take a value for each channel of what stands before: [K] -> [K / repeats]."""
    return copies(s, group)[:, 0].reshape(-1)


def copies(values: np.ndarray, group: Group) -> np.ndarray:
    """Bring the copies of a channel to axis 1: [K] -> [heads, repeats, head_dim]."""
    return values.reshape(-1, group.repeats, group.head_dim or len(values) // group.repeats)


def spread_copies(values: np.ndarray, group: Group) -> np.ndarray:
    """Undo `copies` for values that all copies share: [heads, head_dim] -> [K]."""
    return np.repeat(values[:, None], group.repeats, axis=1).reshape(-1)
