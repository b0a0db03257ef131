"""Lowering for TensorRT, both editions: what its parser and builder want different from the portable graphs.

`lower.py` says which passes a form takes and in which order.
"""

from qwen2vl_rt.lowering.tensorrt.lower import Form, lower_decoder, lower_vision

__all__ = ["Form", "lower_decoder", "lower_vision"]
