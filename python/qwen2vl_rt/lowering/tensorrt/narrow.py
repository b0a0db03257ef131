"""Float32 graphs with 16-bit arithmetic: what a GPU's matrix units multiply.

Quantized bundles keep their norms, biases, scales and activations in float32, which is exact on a CPU. On a
GPU the quantized weights are 4 or 8 bit, and everything around them is narrowed to bfloat16 or float16.
"""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.tensorrt.nodes import ELEMENT_TYPES, Weights, op

LOGITS = "logits"


def narrow(model: ModelProto, weights: Weights, number_format: str) -> None:
    """Make every float32 tensor of `model` `number_format` ("bf16" or "fp16"), in place; logits stay float32.

    Raises:
        BackendError: a weight that float16 cannot hold.
    """
    graph, wanted = model.graph, ELEMENT_TYPES[number_format]
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        if tensor.name in weights:
            weights[tensor.name] = _narrowed(weights[tensor.name], wanted, tensor.name)
            tensor.data_type = wanted
        else:
            array = _narrowed(numpy_helper.to_array(tensor), wanted, tensor.name)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name != LOGITS and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = wanted
    for node in graph.node:
        for item in node.attribute:
            if item.name == "to" and item.type == AttributeProto.INT and item.i == TensorProto.FLOAT:
                item.i = wanted
    _widen_logits(model)


def _narrowed(array: np.ndarray, element_type: int, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = array.astype(helper.tensor_dtype_to_np_dtype(element_type))
    if not np.isfinite(result.astype(np.float32)).all():
        raise BackendError(f"{name} has values beyond float16's range: build for bfloat16 instead.")
    return result


def _widen_logits(model: ModelProto) -> None:
    """Cast the logits to float32 at the end, as 16-bit bundles do."""
    for node in model.graph.node:
        if LOGITS in node.output:
            node.name = node.output[0] = "head.logits"
            model.graph.node.append(op("Cast", LOGITS, "head.logits", to=TensorProto.FLOAT))
            return
