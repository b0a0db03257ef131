"""bfloat16 and float16 graphs as float32: ONNX Runtime's CPU kernels multiply float32 only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from qwen2vl_rt.weights import map_weights

NARROW = (TensorProto.BFLOAT16, TensorProto.FLOAT16)


def widen_to_float32(model: ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Make every 16-bit float tensor of `model` float32, in place. A float32 model stays as it is.

    Returns:
        The widened external weights by name: 16-bit files cannot be used where they lie, so these arrays take
        their place (twice their size in memory, once).
    """
    narrow = [tensor for tensor in model.graph.initializer if tensor.data_type in NARROW]
    mapped = map_weights(model, folder)
    external = [tensor.name for tensor in narrow if tensor.name in mapped]
    with ThreadPoolExecutor() as pool:  # NumPy converts without the GIL
        widened = dict(
            zip(external, pool.map(lambda name: mapped[name].astype(np.float32), external), strict=True)
        )
    for tensor in narrow:
        if tensor.name in widened:
            tensor.data_type = TensorProto.FLOAT
        else:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                attribute.i = TensorProto.FLOAT
            elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in NARROW:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
    return widened
