"""bfloat16 and float16 graphs as float32: ONNX Runtime's CPU kernels multiply float32 only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

NARROW = (TensorProto.BFLOAT16, TensorProto.FLOAT16)


def widen_to_float32(model: ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Make every 16-bit float tensor of `model` float32, in place. A float32 model stays as it is.

    `weights` are the model's external data by name. Widened arrays take the place of mapped ones: twice the
    file's size, in memory once.
    """
    graph = model.graph
    narrow = [tensor for tensor in graph.initializer if tensor.data_type in NARROW]
    external = [tensor.name for tensor in narrow if tensor.name in weights]
    with ThreadPoolExecutor() as pool:  # NumPy converts without the GIL
        weights.update(zip(external, pool.map(lambda name: _widened(weights[name]), external), strict=True))
    for tensor in narrow:
        if tensor.name in weights:
            tensor.data_type = TensorProto.FLOAT
        else:
            tensor.CopyFrom(numpy_helper.from_array(_widened(numpy_helper.to_array(tensor)), tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                attribute.i = TensorProto.FLOAT
            elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in NARROW:
                attribute.t.CopyFrom(numpy_helper.from_array(_widened(numpy_helper.to_array(attribute.t))))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
