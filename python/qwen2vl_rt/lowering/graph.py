"""Editing an ONNX graph: who makes and reads a tensor, new nodes and weights, dropping what nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qwen2vl_rt import _core

CONTRIB_DOMAIN = "com.microsoft"

Weights = dict[str, np.ndarray]
"""A graph's external data by initializer name."""


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Constants and weights by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each tensor, by tensor name."""
    return {name: node for node in graph.node for name in node.output if name}


def readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, by tensor name."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            found.setdefault(name, []).append(node)
    return found


def only_readers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that alone reads a tensor, by tensor name; graph outputs are read outside, too."""
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    return {name: node for node in graph.node for name in node.input if uses[name] == 1}


def attribute(node: NodeProto, name: str, default: Any = 0) -> Any:
    """An attribute's value, as `onnx.helper` reads it; `default` where the node does not have it."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def bias_behind(
    output: str, n: int, readers: Mapping[str, NodeProto], tensors: Mapping[str, TensorProto]
) -> tuple[NodeProto, str] | None:
    """The Add that alone reads a product's `output`, and the constant [n] that it adds; None otherwise.

    readers: `only_readers`; tensors: `initializers`.
    """
    add = readers.get(output)
    if add is None or add.op_type != "Add":
        return None
    biases = (name for name in add.input if name in tensors and list(tensors[name].dims) == [n])
    bias = next(biases, None)
    return None if bias is None else (add, bias)


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
    return constant(graph, f"integers.{'_'.join(map(str, values))}", values, TensorProto.INT64)


def add_weight(
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


def change_weight(tensor: TensorProto, weights: Weights, array: np.ndarray, element_type: int) -> None:
    """Put other values in the place of a weight's; `weights` holds them by name."""
    weights[tensor.name] = array
    tensor.data_type = element_type
    tensor.dims[:] = array.shape


def replace_nodes(graph: GraphProto, replacements: dict[str, Sequence[NodeProto]]) -> None:
    """Put other nodes in the place of the named ones, keeping the order of computation."""
    nodes = []
    for node in graph.node:
        nodes.extend(replacements.get(node.name, [node]))
    del graph.node[:]
    graph.node.extend(nodes)


def drop_unread(graph: GraphProto) -> None:
    """Remove nodes whose outputs are neither read nor graph outputs, and initializers nobody reads."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def use_contrib_operators(model: ModelProto) -> None:
    """Declare ONNX Runtime's own operator domain."""
    if all(opset.domain != CONTRIB_DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))


def use_own_operators(model: ModelProto) -> None:
    """Declare the domain of the project's own operators (csrc/bindings/operators.cc)."""
    if all(opset.domain != _core.OPERATOR_DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_core.OPERATOR_DOMAIN, 1))


def join_heads(graph: GraphProto, name: str, source: str) -> list[NodeProto]:
    """Nodes for [B, heads, T, head_dim] to [B, T, heads * head_dim], in the tensor `name`.

    Where they undo a split, ONNX Runtime's own transpose optimizer removes both.
    """
    return [
        op("Transpose", f"{name}.tokens", source, perm=[0, 2, 1, 3]),
        op("Reshape", name, f"{name}.tokens", integers(graph, 0, 0, -1)),
    ]


def split_heads(graph: GraphProto, source: str, target: str, heads: int) -> list[NodeProto]:
    """Nodes for [B, T, heads * head_dim] to [B, heads, T, head_dim], in the tensor `target`."""
    return [
        op("Reshape", f"{source}.split", source, integers(graph, 0, 0, heads, -1)),
        helper.make_node("Transpose", [f"{source}.split"], [target], f"{source}.heads", perm=[0, 2, 1, 3]),
    ]
