"""What ONNX Runtime raises when it fails.

Anything else that comes out of a call of it is the caller's: a signal's handler may run between any two
instructions of its Python half, and raise a deadline's TimeoutError there.
"""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as ort_binding

FAILURES = (
    RuntimeError,
    MemoryError,
    *(kind for kind in vars(ort_binding).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
"""At a run; a graph that cannot be loaded is a ValueError, too."""
