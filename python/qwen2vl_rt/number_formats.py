"""The floating-point formats that graphs and caches have, by each of the names that they go by; and what
8-bit codes share.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import TensorProto

# The largest magnitude of a token that is rounded to 8-bit codes is taken for this at least: zeros have no
# scale of their own. float16 could not hold it.
SMALLEST_PEAK = 1e-10


@dataclass(frozen=True)
class NumberFormat:
    """Its names."""

    precision: str
    """In bundles and options."""
    dtype: str
    """In the compiled parts."""
    element_type: int
    """ONNX's."""
    tensorrt: str
    """In descriptions of engines."""
    numpy: np.dtype
    """NumPy's type of its numbers."""

    @property
    def item_bytes(self) -> int:
        """Of one number."""
        return self.numpy.itemsize


FLOAT32 = NumberFormat("fp32", "float32", TensorProto.FLOAT, "float", np.dtype(np.float32))
BFLOAT16 = NumberFormat("bf16", "bfloat16", TensorProto.BFLOAT16, "bf16", np.dtype(ml_dtypes.bfloat16))
FLOAT16 = NumberFormat("fp16", "float16", TensorProto.FLOAT16, "half", np.dtype(np.float16))
NUMBER_FORMATS = (FLOAT32, BFLOAT16, FLOAT16)

_BY_NAME = {
    name: each
    for each in NUMBER_FORMATS
    for name in (each.precision, each.dtype, each.element_type, each.tensorrt)
}


def format_named(name: str | int) -> NumberFormat:
    """Return the format with this name, any of the four. Raises KeyError for any other."""
    return _BY_NAME[name]


def format_of_graphs(precision: str) -> NumberFormat:
    """What a bundle's graphs have where they are not quantized: their own format; float32 in quantized ones.

    `precision`: the bundle's, one of `bundle.PRECISIONS`.
    """
    return _BY_NAME.get(precision, FLOAT32)


def format_on_a_gpu(precision: str) -> NumberFormat:
    """What the cuda backend computes a bundle in: its graphs' own format; bfloat16 for quantized ones. An
    engine has a format of its own.
    """
    return _BY_NAME.get(precision, BFLOAT16)
