"""Short ways to write nodes and constants, shared by the passes of this folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

Weights = dict[str, np.ndarray]


def op(kind: str, name: str, *inputs: str, **attributes: object) -> NodeProto:
    """A node whose one output has the node's name."""
    return helper.make_node(kind, list(inputs), [name], name, **attributes)


def constant(graph: GraphProto, name: str, values: object, element_type: int) -> str:
    """An initializer of `graph`, added once; returns its name."""
    if all(tensor.name != name for tensor in graph.initializer):
        array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(element_type))
        graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def integers(graph: GraphProto, *values: int) -> str:
    """A constant int64 vector, added once."""
    name = "tensorrt." + "_".join(str(value) for value in values)
    return constant(graph, name, values, TensorProto.INT64)


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Constants and weights by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, by tensor name."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            found.setdefault(name, []).append(node)
    return found


def store(
    graph: GraphProto,
    weights: Weights,
    name: str,
    array: np.ndarray,
    element_type: int,
    shape: Sequence[int] | None = None,
) -> str:
    """Add a weight whose values lie in `weights`, beside those that came from the bundle; returns its name.

    Args:
        graph: the graph that declares it.
        weights: external data by name.
        name: a name that the graph does not have yet.
        array: its values, in the dtype of `element_type`.
        element_type: of TensorProto.
        shape: where it is not the array's: 4-bit numbers lie two in a byte.
    """
    tensor = TensorProto(name=name, data_type=element_type, dims=array.shape if shape is None else shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    graph.initializer.append(tensor)
    weights[name] = np.ascontiguousarray(array)
    return name
