"""Editing an ONNX graph: who makes a tensor, replacing a node, dropping what nobody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from qwen2vl_rt import _core

CONTRIB_DOMAIN = "com.microsoft"


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each tensor, by tensor name."""
    return {name: node for node in graph.node for name in node.output if name}


def only_readers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that alone reads a tensor, by tensor name; graph outputs are read outside, too."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    return {name: nodes[0] for name, nodes in readers.items() if len(nodes) == 1 and name not in outputs}


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

    readers: `only_readers`; tensors: the graph's initializers by name.
    """
    add = readers.get(output)
    if add is None or add.op_type != "Add":
        return None
    biases = (name for name in add.input if name in tensors and list(tensors[name].dims) == [n])
    bias = next(biases, None)
    return None if bias is None else (add, bias)


def store(tensor: TensorProto, weights: dict[str, np.ndarray], array: np.ndarray, element_type: int) -> None:
    """Put other values in the place of an initializer's; `weights` holds them by name."""
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
    shape = _constant(graph, "heads.joined_shape", [0, 0, -1])
    return [
        helper.make_node("Transpose", [source], [f"{name}.tokens"], f"{name}.tokens", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"{name}.tokens", shape], [name], name),
    ]


def split_heads(graph: GraphProto, source: str, target: str, heads: int) -> list[NodeProto]:
    """Nodes for [B, T, heads * head_dim] to [B, heads, T, head_dim], in the tensor `target`."""
    shape = _constant(graph, "heads.split_shape", [0, 0, heads, -1])
    return [
        helper.make_node("Reshape", [source, shape], [f"{source}.split"], f"{source}.split"),
        helper.make_node("Transpose", [f"{source}.split"], [target], f"{source}.heads", perm=[0, 2, 1, 3]),
    ]


def _constant(graph: GraphProto, name: str, values: Sequence[int]) -> str:
    """An int64 vector among the graph's initializers, added once."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    return name
