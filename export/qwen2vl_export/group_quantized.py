"""A matrix as integer codes with a scale and a zero point for every group of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen2vl_export.precisions import BLOCK


@dataclass(frozen=True)
class GroupQuantized:
    """A linear layer's matrix, N outputs by K inputs, in G = ceil(K / `group`) groups along K.

    The number that a code stands for, g being the group of input k:
    scales[n, g] * (codes[n, k] - zero_points[n, g]).
    """

    codes: np.ndarray  # uint8 [N, K], one a byte
    scales: np.ndarray  # float32 [N, G]
    zero_points: np.ndarray  # uint8 [N, G]
    group: int = BLOCK
    order: np.ndarray | None = None  # [K], each input's group (act-order); None: k // group

    def __getitem__(self, outputs: slice) -> GroupQuantized:
        """Take some outputs."""
        parts = (self.codes[outputs], self.scales[outputs], self.zero_points[outputs])
        return GroupQuantized(*parts, self.group, self.order)

    def dequantized(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the matrix' inputs `start` to `stop` (all of them by default) in float32 [N, stop - start].

        Exact where the scales were stored in 16 bit: their at most 11 bits times the difference's at most 9
        fit float32's 24.
        """
        numbers = self.codes[:, start:stop].astype(np.float32)
        inputs = np.arange(start, start + numbers.shape[1])
        groups = inputs // self.group if self.order is None else self.order[inputs]
        numbers -= self.zero_points[:, groups]
        numbers *= self.scales[:, groups]
        return numbers
