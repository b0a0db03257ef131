"""GPTQ: rounding a matrix so that its outputs, not its numbers, stay close.

The error of an output is e H e^T with e the row's error and H = X^T X of the inputs seen in calibration.
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

from dataclasses import dataclass

import numpy as np

from qwen2vl_export.precisions import BLOCK
from qwen2vl_export.quantize.forms import ZERO_POINTS, Blocks, nonzero

DAMPING = 0.01  # of the mean diagonal, added to it
RIDGE = 0.05  # the same, for what a matrix makes up of errors before it
# Columns that one H spans; wider matrices (7B and 72B down) are split, which only loses what crosses the
# parts.
WIDEST = 9600
_STEP = 32  # columns rounded between two products
_RATIOS = np.linspace(1.0, 0.6, 17, dtype=np.float32)  # of a scale that reaches the block's peak


@dataclass(frozen=True)
class Part:
    """What GPTQ knows of inputs `columns`: their order, A (in that order), D and H (in the matrix' own)."""

    columns: slice
    order: np.ndarray
    a: np.ndarray
    d: np.ndarray
    h: np.ndarray


def parts(x: np.ndarray) -> list[Part]:
    """Return the factors of H for inputs x [T, K]."""
    inputs = x.shape[1]
    count = -(-inputs // WIDEST)
    width = -(-inputs // (count * BLOCK)) * BLOCK
    return [_part(x, slice(start, min(start + width, inputs))) for start in range(0, inputs, width)]


def _part(x: np.ndarray, columns: slice) -> Part:
    h = x[:, columns].T @ x[:, columns]
    diagonal = h.diagonal().copy()
    dead = diagonal <= 0
    damping = DAMPING * float(diagonal.mean()) or 1.0
    order = np.argsort(-diagonal, kind="stable")
    ordered = h[np.ix_(order, order)]
    ordered[np.diag_indices_from(h)] += damping + dead[order]
    # The upper triangular factor is the lower one of the matrix read backwards.
    a = np.ascontiguousarray(_cholesky(ordered[::-1, ::-1])[::-1, ::-1])
    del ordered
    root = a.diagonal().copy()
    a /= root  # column k by R[k, k]
    for k, row in enumerate(a):
        row[: k + 1] = 0
    d = np.empty_like(root)
    d[order] = root**2
    h[np.diag_indices_from(h)] += RIDGE / DAMPING * damping
    return Part(columns, order, a, d, h)


def _cholesky(h: np.ndarray) -> np.ndarray:
    """Factor h; in float64 where float32's rounding makes it indefinite."""
    try:
        return np.linalg.cholesky(h)
    except np.linalg.LinAlgError:
        return np.linalg.cholesky(h.astype(np.float64)).astype(np.float32)


def corrected(matrix: np.ndarray, x: np.ndarray, missing: np.ndarray, found: list[Part]) -> np.ndarray:
    """Change float32 [N, K] so that its outputs on x [T, K] gain what they lack, `missing` [T, N].

    A ridge regression: the layers before are rounded already, so x is not what the model without rounding
    would have here, and a part of what that does to the output can be made up for (as in GPTAQ, Li et al.
    2025).
    """
    matrix = matrix.copy()
    for part in found:
        inputs = x[:, part.columns]
        step = np.linalg.solve(part.h, inputs.T @ missing)  # [columns, N]
        matrix[:, part.columns] += step.T
        if len(found) > 1:
            missing = missing - inputs @ step
    return matrix


def quantize(matrix: np.ndarray, found: list[Part], bits: int = 4) -> Blocks:
    """Round float32 [N, K] with the factors of its inputs."""
    zero_point = ZERO_POINTS[bits]
    codes = np.empty(matrix.shape, np.uint8)
    scales = []
    for part in found:
        columns = np.ascontiguousarray(matrix[:, part.columns].T)  # [K, N]: a column is contiguous
        per_block = search_scales(columns, part.d, zero_point)  # [G, N]
        codes[:, part.columns] = _round(columns, part, per_block, zero_point).T
        scales.append(per_block.T)
    scales = np.ascontiguousarray(np.concatenate(scales, axis=1))
    return Blocks(codes, scales, np.full(scales.shape, zero_point, np.uint8))


def search_scales(columns: np.ndarray, importance: np.ndarray, zero_point: int) -> np.ndarray:
    """Return each block's scale with the least weighted error of rounding: [K, N] -> [G, N]."""
    found = []
    for start in range(0, len(columns), BLOCK):
        block, weight = columns[start : start + BLOCK], importance[start : start + BLOCK]
        peak = np.abs(block).max(axis=0)
        largest = nonzero(peak / np.float32(zero_point - 1))
        best, least = largest, np.full(largest.shape, np.inf, np.float32)
        for ratio in _RATIOS:
            scale = largest * ratio
            error = np.rint(block / scale)
            np.clip(error, -zero_point, zero_point - 1, out=error)
            error *= scale
            error -= block
            error *= error
            total = weight @ error
            better = total < least
            best, least = np.where(better, scale, best), np.where(better, total, least)
        found.append(best)
    return np.stack(found)


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
