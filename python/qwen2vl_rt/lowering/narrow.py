"""float32 graphs in a 16-bit format: what a GPU multiplies fastest, at half the memory."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

DTYPES = {TensorProto.BFLOAT16: ml_dtypes.bfloat16, TensorProto.FLOAT16: np.float16}


def narrow_floats(model: ModelProto, weights: dict[str, np.ndarray], element_type: int) -> None:
    """Make every float32 tensor of `model` bfloat16 or float16, in place.

    Constants, inputs, outputs and `weights` (the external data by name) are converted. Statistics of norms
    and softmax stay float32 inside their kernels.
    """
    dtype, graph = DTYPES[element_type], model.graph
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        if tensor.name in weights:
            weights[tensor.name] = weights[tensor.name].astype(dtype)
            tensor.data_type = element_type
        else:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = element_type
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = element_type


def widen_output(model: ModelProto, name: str) -> None:
    """Make the graph output `name` float32, by a Cast at its end, in place. A float32 one stays as it is."""
    graph = model.graph
    output = next(value for value in graph.output if value.name == name)
    if output.type.tensor_type.elem_type == TensorProto.FLOAT:
        return
    narrow = f"{name}.narrow"
    _rename(graph, name, narrow)
    graph.node.append(helper.make_node("Cast", [narrow], [name], f"{name}.widened", to=TensorProto.FLOAT))
    output.type.tensor_type.elem_type = TensorProto.FLOAT


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
