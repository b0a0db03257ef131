"""A runtime for Qwen2-VL: see `Session`."""

from qwen2vl_rt._core import __version__

__all__ = ["__version__"]
