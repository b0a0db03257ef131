"""Codes and scales of the three quantized forms, and back: the arithmetic that the graphs undo.

int4 blocks    w = (code - 8) * scale,   code 0..15,     a scale for BLOCK inputs of an output
8-bit blocks   w = (code - 128) * scale, code 1..255,    the same
8 bit, rows    w = code * scale,         code -127..127, a scale an output

Scales of blocks have the 11 bits of float16, so that a runtime may keep them in two bytes.
"""

from __future__ import annotations

import numpy as np

from qwen2vl_export.group_quantized import GroupQuantized
from qwen2vl_export.packed_layer import PackedLayer
from qwen2vl_export.precisions import BLOCK

ZERO_POINTS = {4: 8, 8: 128}
STEPS = {4: 8, 8: 127}  # steps that the largest magnitude of a block gets at round-to-nearest
SMALLEST = np.float32(2**-29)  # scale of a block


def spread(per_block: np.ndarray, columns: int) -> np.ndarray:
    """Repeat a value a block, [N, G], to a value a number, [N, columns]."""
    return np.repeat(per_block, BLOCK, axis=1)[:, :columns]


def peaks(matrix: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of each block: [N, K] -> [N, G]."""
    return np.maximum.reduceat(np.abs(matrix), np.arange(0, matrix.shape[1], BLOCK), axis=1)


def nearest_blocks(matrix: np.ndarray, bits: int, scales: np.ndarray | None = None) -> GroupQuantized:
    """Round a float32 matrix to the nearest codes; `scales` [N, G] by default reach each block's peak."""
    zero_point = ZERO_POINTS[bits]
    if scales is None:
        scales = short(peaks(matrix) / np.float32(STEPS[bits]))
    steps = np.rint(matrix / spread(scales, matrix.shape[1]))
    low = 1 if bits == 8 else 0
    codes = np.clip(steps + zero_point, low, 2 * zero_point - 1).astype(np.uint8)
    return GroupQuantized(codes, scales, np.full(scales.shape, zero_point, np.uint8))


def nearest_rows(matrix: np.ndarray, scales: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Round a float32 matrix [N, K] to int8 with a scale a row: codes [N, K], scales [N]."""
    if scales is None:
        scales = np.abs(matrix).max(axis=1) / np.float32(127)
        scales = np.where(scales > 0, scales, np.float32(1))  # of numbers that are all zero
    return np.clip(np.rint(matrix / scales[:, None]), -127, 127).astype(np.int8), scales


def short(scales: np.ndarray) -> np.ndarray:
    """Round positive float32 scales to 11 significant bits; those under 2^-29, zero with them, become that.

    Steps so small are beneath what float32 tells apart beside weights of an ordinary size.
    """
    bits = np.maximum(scales, SMALLEST).astype(np.float32).view(np.uint32)
    return (bits + 0x1000 & 0xFFFFE000).view(np.float32)  # 13 of the 24 bits go


def packed(codes: np.ndarray) -> np.ndarray:
    """Put two 4-bit codes in a byte, the first in the low half: uint8 [count] -> [ceil(count / 2)]."""
    flat = codes.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | flat[1::2] << 4


def is_kept(layer: PackedLayer | None) -> bool:
    """Return whether a checkpoint's layer has the codes of an int4 bundle: 4 bit, a scale for each BLOCK."""
    return layer is not None and layer.config.bits == 4 and layer.config.group == BLOCK and layer.in_order


def kept_blocks(layer: PackedLayer | None) -> GroupQuantized | None:
    """Return the matrix of a layer that `is_kept`, as it is; None for any other."""
    return layer.read(0, layer.outputs) if is_kept(layer) else None
