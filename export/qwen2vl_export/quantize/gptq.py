"""GPTQ: rounding a matrix so that its outputs, not its numbers, stay close.

The error of an output is e H e^T with e the row's error and H = X^T diag(weights) X of the inputs seen in
calibration, a weight a token.
Columns are rounded one after the other; each takes over what the errors before it did to the output, as far
as it can:

    H = (A + I) D (A + I)^T, A strictly upper triangular
    column k: q_k = round(w_k + sum over i < k of (w_i - q_i) A[i, k])

which is GPTQ (Frantar et al. 2023) in the form of LDLQ (Chee et al. 2023): no inverse of H. The error left is
then the sum of D[k] times the squared rounding of column k, so scales are searched with D as weight. Columns
go in the order of falling diagonal of H (important ones first, while others can still make up for them); the
blocks that share a scale stay neighbours, because scales are fixed before.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qwen2vl_export.group_quantized import GroupQuantized
from qwen2vl_export.precisions import BLOCK
from qwen2vl_export.quantize.forms import ZERO_POINTS, short

DAMPING = 0.01  # of the mean diagonal, added to it
# Columns that one H spans; wider matrices (7B and 72B down) are split, which only loses what crosses the
# parts.
WIDEST = 9600
_STEP = 32  # columns rounded between two products
_BLOCK = 256  # columns factored between two products
_OUTPUTS = 512  # whose scales are searched at a time: they stay in the cache
_RATIOS = np.linspace(1.0, 0.6, 17, dtype=np.float32)  # of a scale that reaches the block's peak


@dataclass(frozen=True)
class Part:
    """What GPTQ knows of inputs `columns`: their order, and in that order A's strict upper triangle (what is
    below is anything) and D.
    """

    columns: slice
    order: np.ndarray
    a: np.ndarray
    d: np.ndarray

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return H^-1 right, both [K, N] in the matrix' own order of inputs."""
        x, blocks = right[self.order], _blocks(len(self.order))
        for block in reversed(blocks):  # (A + I) x
            x[block] -= self.a[block, block.stop :] @ x[block.stop :]
            x[block] = self._corner(block) @ x[block]
        x /= self.d[:, None]
        for block in blocks:  # (A + I)^T x
            x[block] -= self.a[: block.start, block].T @ x[: block.start]
            x[block] = self._corner(block).T @ x[block]
        found = np.empty_like(x)
        found[self.order] = x
        return found

    def _corner(self, block: slice) -> np.ndarray:
        """Invert the unit triangle of A + I on the diagonal."""
        return np.linalg.inv(np.triu(self.a[block, block], 1) + np.eye(block.stop - block.start, dtype="f4"))


def parts(x: np.ndarray, weights: np.ndarray) -> list[Part]:
    """Return the factors of H for inputs x [T, K] and the tokens' weights [T]."""
    inputs = x.shape[1]
    count = -(-inputs // WIDEST)
    width = -(-inputs // (count * BLOCK)) * BLOCK
    spans = [slice(start, min(start + width, inputs)) for start in range(0, inputs, width)]
    return [_part(x, weights, span) for span in spans]


def _part(x: np.ndarray, weights: np.ndarray, columns: slice) -> Part:
    inputs = x[:, columns] * np.sqrt(weights)[:, None]
    diagonal = np.einsum("tk,tk->k", inputs, inputs)
    order = np.argsort(-diagonal, kind="stable")
    inputs, diagonal = inputs[:, order], diagonal[order]
    damping = (diagonal <= 0) + DAMPING * (float(diagonal.mean()) or 1)
    a = _factor(inputs, damping, np.float32)
    if a is None:  # float32's rounding made H indefinite
        a = _factor(inputs, damping, np.float64).astype(np.float32)
    root = a.diagonal().copy()
    a /= root  # column k by R[k, k]
    return Part(columns, order, a, root**2)


def _factor(x: np.ndarray, damping: np.ndarray, number: type) -> np.ndarray | None:
    """Return R with R R^T = X^T X + diag(damping), its upper triangle; None if that is not positive."""
    x = x.astype(number, copy=False)
    h = x.T @ x
    h[np.diag_indices_from(h)] += damping
    for block in reversed(_blocks(len(h))):  # Cholesky's, from the last column on
        panel, behind = h[: block.stop, block], slice(block.stop, None)
        panel -= h[: block.stop, behind] @ h[block, behind].T
        try:
            corner = np.linalg.cholesky(panel[block.start :][::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            return None
        panel[block.start :] = corner
        panel[: block.start] = panel[: block.start] @ np.linalg.inv(corner).T
    return h


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


@dataclass(frozen=True)
class Loss:
    """What a group's outputs have lost in the layers before: the inputs x are rounded ones', `exact` the
    model's without rounding, both [T, K]; weights [T].
    """

    x: np.ndarray
    exact: np.ndarray
    weights: np.ndarray
    crossed: np.ndarray | None
    """X^T diag(weights) (exact - X) [K, K], where that is less work than the outputs' difference."""

    @staticmethod
    def of(x: np.ndarray, exact: np.ndarray, weights: np.ndarray, outputs: int, found: list[Part]) -> Loss:
        """`outputs` is how many the group's matrices have together."""
        few = len(found) == 1 and x.shape[1] < outputs
        crossed = x.T @ ((exact - x) * weights[:, None]) if few else None
        return Loss(x, exact, weights, crossed)

    def corrected(self, matrix: np.ndarray, wanted: np.ndarray, found: list[Part]) -> np.ndarray:
        """Change float32 [N, K] so that its outputs on x come nearer `wanted` [T, N], its own on `exact`.

        A regression, damped as H is: a part of what the rounding so far does to the outputs can be made up
        for (as in GPTAQ, Li et al. 2025).
        """
        if self.crossed is not None:
            return matrix + found[0].solve(self.crossed @ matrix.T).T
        matrix, missing = matrix.copy(), wanted - self.x @ matrix.T
        for part in found:
            inputs = self.x[:, part.columns]
            step = part.solve(inputs.T @ (missing * self.weights[:, None]))  # [columns, N]
            matrix[:, part.columns] += step.T
            if len(found) > 1:
                missing -= inputs @ step
        return matrix


def quantize(matrix: np.ndarray, found: list[Part], bits: int = 4) -> GroupQuantized:
    """Round float32 [N, K] with the factors of its inputs."""
    zero_point = ZERO_POINTS[bits]
    codes = np.empty(matrix.shape, np.uint8)
    scales = []
    for part in found:
        columns = np.ascontiguousarray(matrix[:, part.columns].T)  # [K, N]: a column is contiguous
        importance = np.empty_like(part.d)
        importance[part.order] = part.d
        per_block = search_scales(columns, importance, zero_point)  # [G, N]
        codes[:, part.columns] = _round(columns, part, per_block, zero_point).T
        scales.append(per_block.T)
    scales = np.ascontiguousarray(np.concatenate(scales, axis=1))
    return GroupQuantized(codes, scales, np.full(scales.shape, zero_point, np.uint8))


def search_scales(columns: np.ndarray, importance: np.ndarray, zero_point: int) -> np.ndarray:
    """Return each block's scale with the least weighted error of rounding: [K, N] -> [G, N]."""
    inputs, outputs = columns.shape
    found = np.empty((-(-inputs // BLOCK), outputs), np.float32)

    def search(place: tuple[int, int]) -> None:
        start, first = place
        rows, some = slice(start, start + BLOCK), slice(first, first + _OUTPUTS)
        found[start // BLOCK, some] = _search_scale(columns[rows, some], importance[rows], zero_point)

    places = [(k, n) for k in range(0, inputs, BLOCK) for n in range(0, outputs, _OUTPUTS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(search, places))
    return found


def _search_scale(block: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """Return the scales [N] of one block [BLOCK, N]."""
    largest = np.abs(block).max(axis=0) / np.float32(zero_point - 1)
    best, least = short(largest), np.full(largest.shape, np.inf, np.float32)
    for ratio in _RATIOS:
        scale = short(largest * ratio)
        error = np.rint(block / scale)
        np.clip(error, -zero_point, zero_point - 1, out=error)
        error *= scale
        error -= block
        error *= error
        total = weight @ error
        better = total < least
        best, least = np.where(better, scale, best), np.where(better, total, least)
    return best


def _round(columns: np.ndarray, part: Part, scales: np.ndarray, zero_point: int) -> np.ndarray:
    """Return codes uint8 [K, N] in the matrix' own order; columns float32 [K, N], scales [G, N]."""
    order, a = part.order, part.a
    codes = np.empty(columns.shape, np.uint8)
    errors = np.empty(columns.shape, np.float32)  # w - q, in `order`
    for start in range(0, len(order), _STEP):
        stop = min(start + _STEP, len(order))
        own = columns[order[start:stop]]
        wanted = own + a[:start, start:stop].T @ errors[:start]
        for j in range(stop - start):
            k = order[start + j]
            scale = scales[k // BLOCK]
            steps = np.clip(np.rint(wanted[j] / scale), -zero_point, zero_point - 1)
            codes[k] = steps + zero_point
            errors[start + j] = own[j] - steps * scale
            wanted[j + 1 :] += a[start + j, start + j + 1 : stop, None] * errors[start + j]
    return codes
