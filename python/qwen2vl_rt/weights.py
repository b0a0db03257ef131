"""An ONNX model's external weights as NumPy arrays over the mapped files: nothing is read until used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper


def map_weights(model: ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Map every initializer of `model` that is stored outside it.

    Args:
        model: a model whose external data lie in `folder`.
        folder: the bundle's folder.

    Returns:
        Read-only arrays by initializer name, in the stored shape and dtype (bfloat16 from ml_dtypes). Arrays
        of one file share one mapping, so a tied table is in memory once.
    """
    files: dict[str, np.ndarray] = {}
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        name = entry["location"]
        if name not in files:
            files[name] = np.memmap(folder / name, dtype=np.uint8, mode="r")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        offset, count = int(entry.get("offset", 0)), int(np.prod(tensor.dims, dtype=np.int64))
        raw = files[name][offset : offset + count * dtype.itemsize]
        weights[tensor.name] = raw.view(dtype).reshape(tuple(tensor.dims))
    return weights
