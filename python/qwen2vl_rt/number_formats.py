"""The floating-point formats that graphs and caches have, by each of the names that they go by."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto


@dataclass(frozen=True)
class NumberFormat:
    """Its names: `precision` in bundles and options, `dtype` in NumPy and the compiled parts; ONNX's type."""

    precision: str
    dtype: str
    element_type: int
    item_bytes: int


_FORMATS = (
    NumberFormat("fp32", "float32", TensorProto.FLOAT, 4),
    NumberFormat("bf16", "bfloat16", TensorProto.BFLOAT16, 2),
    NumberFormat("fp16", "float16", TensorProto.FLOAT16, 2),
)
_BY_NAME = {name: each for each in _FORMATS for name in (each.precision, each.dtype, each.element_type)}


def format_named(name: str | int) -> NumberFormat:
    """Return the format with this precision, dtype or ONNX element type. Raises KeyError for any other."""
    return _BY_NAME[name]
