"""float32 graphs in a 16-bit format: what a GPU multiplies fastest, at half the memory."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.number_formats import format_named


def narrow_floats(model: ModelProto, weights: dict[str, np.ndarray], element_type: int) -> None:
    """Make every float32 tensor of `model` bfloat16 or float16, in place.

    Constants, inputs, outputs and `weights` (the external data by name) are converted. Statistics of norms
    and softmax stay float32 inside their kernels.

    Raises:
        BackendError: a weight that float16 cannot hold.
    """
    dtype, graph = format_named(element_type).numpy, model.graph
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        if tensor.name in weights:
            weights[tensor.name] = _narrowed(weights[tensor.name], dtype, tensor.name)
            tensor.data_type = element_type
        else:
            array = _narrowed(numpy_helper.to_array(tensor), dtype, tensor.name)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
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


def drop_softmax_precision(model: ModelProto) -> None:
    """Remove Attention's `softmax_precision`, in place: TensorRT's parser and some CUDA kernels refuse it,
    and all of them accumulate in float32 anyway.
    """
    for node in model.graph.node:
        for item in [item for item in node.attribute if item.name == "softmax_precision"]:
            node.attribute.remove(item)


def _narrowed(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if not np.isfinite(result.astype(np.float32)).all():
        raise BackendError(f"{name} has values beyond float16's range: choose bfloat16 instead.")
    return result


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
