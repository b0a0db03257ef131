"""A matrix as integer codes with a scale and a zero point for every group of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GroupQuantized:
    """A linear layer's matrix, N outputs by K inputs, in G = K / `group` groups along K.

    The number that a code stands for: scales[n, k // group] * (codes[n, k] - zero_points[n, k // group]).
    """

    codes: np.ndarray  # uint8 [N, K], each 0 to 2**bits - 1
    scales: np.ndarray  # float32 [N, G]
    zero_points: np.ndarray  # uint8 [N, G], each 0 to 2**bits - 1
    group: int
    bits: int

    def dequantized(self) -> np.ndarray:
        """Return the matrix in float32 [N, K].

        Exact where the scales were stored in 16 bit: their at most 11 bits times the difference's at most 9
        fit float32's 24.
        """
        numbers = self.codes.astype(np.float32)
        groups = numbers.reshape(*self.scales.shape, self.group)  # a view: [N, G, group]
        groups -= self.zero_points[..., None]
        groups *= self.scales[..., None]
        return numbers
