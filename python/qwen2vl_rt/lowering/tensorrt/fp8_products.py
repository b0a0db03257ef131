"""Floating-point layers as products of 8-bit floating-point codes (e4m3), on GPUs that multiply them.

Weights get a scale an output (its largest magnitude becomes 448), activations one a token: no calibration is
needed, and nothing is clipped. The bundle stays as it is; the codes are made when the engine is.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto

from qwen2vl_rt.lowering.graph import Weights, add_weight, drop_unread, initializers, replace_nodes
from qwen2vl_rt.lowering.tensorrt.token_codes import FP8, product_of_codes, token_codes
from qwen2vl_rt.number_formats import SMALLEST_PEAK, format_named

KEPT = ("patch_embedding",)  # pictures enter here, and the layer is small


def to_fp8_products(model: ModelProto, weights: Weights, number_format: str) -> None:
    """Replace every linear layer, MatMul by a stored matrix [K, N], in place; lm_head's Gemm stays.

    Args:
        model: a graph that is not quantized, its floating-point type `number_format`.
        weights: external data by name; the matrices become codes.
        number_format: "fp32", "bf16" or "fp16".
    """
    graph, numbers = model.graph, format_named(number_format)
    wanted = numbers.element_type
    stored = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    coded: set[str] = set()
    for node in graph.node:
        weight = node.input[1] if node.op_type == "MatMul" else None
        if weight not in weights or node.name in KEPT:
            continue
        x, name = node.input[0], node.output[0]
        codes, scale = _codes(weights[weight])
        weights[weight], stored[weight].data_type = codes, FP8.element_type
        scale_name = add_weight(graph, weights, f"{weight}.scale", scale.astype(numbers.numpy), wanted)
        nodes = [] if x in coded else token_codes(graph, x, FP8, wanted)
        coded.add(x)
        replacements[node.name] = [*nodes, *product_of_codes(name, x, weight, scale_name, wanted)]
    replace_nodes(graph, replacements)
    drop_unread(graph)


def _codes(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [K, N] and scales float32 [N] of a matrix [K, N]. 256 outputs at a time: small float32 copies."""
    codes = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn)
    scale = np.empty(matrix.shape[1], np.float32)
    for start in range(0, matrix.shape[1], 256):
        part = np.s_[start : start + 256]
        values = matrix[:, part].astype(np.float32)
        scale[part] = np.maximum(np.abs(values).max(axis=0), SMALLEST_PEAK) / FP8.largest
        codes[:, part] = (values / scale[part]).astype(ml_dtypes.float8_e4m3fn)
    return codes, scale
