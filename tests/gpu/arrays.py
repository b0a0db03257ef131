"""Number formats by name, and numpy arrays to a device's memory and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from qwen2vl_rt import _core

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def to_device(device: _core.Device, array: np.ndarray) -> _core.DeviceBlock:
    array = np.ascontiguousarray(array)
    block = device.allocate(max(1, array.nbytes))
    block.upload(array.reshape(-1).view(np.uint8))
    return block


def to_host(block: _core.DeviceBlock, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    raw = np.empty(int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
    block.download(raw)
    return raw.view(dtype).reshape(shape)
