"""What runs a session's graphs, a package each: `cpu`, `cuda`, `tensorrt`, and in `device` what the two on a
GPU share. `backend.py` says what a session asks of one, `select.py` which one it gets.
"""

from qwen2vl_rt.backends.backend import Backend
from qwen2vl_rt.backends.select import select_backend

__all__ = ["Backend", "select_backend"]
