"""The passes that a graph takes on its way to TensorRT, by the form that the engine wants."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, TensorProto

from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.graph_format import LOGITS, VISUAL_EMBEDDINGS
from qwen2vl_rt.lowering.graph import Weights
from qwen2vl_rt.lowering.narrow import drop_softmax_precision, narrow_floats, widen_output
from qwen2vl_rt.lowering.tensorrt.causal_mask import mask_attention
from qwen2vl_rt.lowering.tensorrt.fixed_capacity import fix_capacity
from qwen2vl_rt.lowering.tensorrt.flat_products import flatten_products
from qwen2vl_rt.lowering.tensorrt.fp8_products import to_fp8_products
from qwen2vl_rt.lowering.tensorrt.int8_products import to_int8_products
from qwen2vl_rt.lowering.tensorrt.primitives import to_primitives
from qwen2vl_rt.lowering.tensorrt.signed_codes import to_signed_codes
from qwen2vl_rt.lowering.tensorrt.split_codes import split_codes
from qwen2vl_rt.number_formats import format_named


@dataclass(frozen=True)
class Form:
    """What an engine's graph looks like."""

    number_format: str
    """Arithmetic around the matrices, inputs, outputs and cache: "fp32", "bf16" or "fp16"."""
    attention: str = "mask"
    """How the decoder's attention knows which positions count. "mask": a boolean mask in the graph.
    "lengths": as in the portable graph; the parser drops it, and `tensorrt.network` sets it again on the
    parsed network. "primitives": no operator newer than opset 20, the cache written by the caller."""
    fp8: bool = False
    """Linear layers of an unquantized bundle as products of 8-bit floating-point numbers."""
    split_codes: bool = True
    """8-bit blocks as two products of 4-bit ones. GPUs before SM 8.0 have none: there TensorRT writes such a
    matrix out in 16 bits at every run."""


def lower_decoder(model: ModelProto, weights: Weights, geometry: Geometry, form: Form, capacity: int) -> None:
    """Lower a decoder (or the prompt's own decoder) and its external weights, in place.

    Args:
        model: decoder.onnx or prefill.onnx of a bundle.
        weights: its external data by name (`weights.map_weights`); changed entries are replaced.
        geometry: the bundle's.
        form: the engine's. Its number format differs from the graph's only where that is float32.
        capacity: positions of the cache.
    """
    decoder = geometry.decoder
    _lower_numbers(model, weights, form)
    widen_output(model, LOGITS)
    fix_capacity(model, capacity)
    if form.attention == "mask":
        mask_attention(model, decoder.heads, decoder.kv_heads, decoder.head_dim, capacity)
    elif form.attention == "primitives":
        to_primitives(model, decoder.heads, decoder.kv_heads, decoder.head_dim, form.number_format)


def lower_vision(model: ModelProto, weights: Weights, geometry: Geometry, form: Form) -> None:
    """Lower the vision tower and its external weights, in place; arguments as for `lower_decoder`."""
    vision = geometry.vision
    _lower_numbers(model, weights, form)
    if form.attention == "primitives":
        to_primitives(model, vision.heads, vision.heads, vision.head_dim, form.number_format)
    widen_output(model, VISUAL_EMBEDDINGS)  # the decoder's inputs are gathered from float32


def _lower_numbers(model: ModelProto, weights: Weights, form: Form) -> None:
    drop_softmax_precision(model)
    if form.number_format != "fp32" and _is_float32(model):
        narrow_floats(model, weights, format_named(form.number_format).element_type)
    flatten_products(model)
    if form.split_codes:
        split_codes(model, weights)
    to_signed_codes(model, weights)
    to_int8_products(model, form.number_format)
    if form.fp8:
        to_fp8_products(model, weights, form.number_format)


def _is_float32(model: ModelProto) -> bool:
    return model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
