"""Nodes of the project's own linear operators, TokenLinear and BlockLinear (csrc/integer): made and joined.

One node does what stands around a product, too: it normalises or activates its input and rounds it to 8 bits,
and adds bias and residual to the result while that is in registers. Layers over one input (queries, keys and
values; gate and up) are one node, which rounds the input once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from onnx import ModelProto, NodeProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.graph import (
    attribute,
    drop_unread,
    initializers,
    only_readers,
    producers,
    replace_nodes,
)

# Places of the inputs behind x (csrc/onnxruntime/linear_inputs.h); the matrices' own begin at SHARED.
OTHER, NORM_WEIGHT, NORM_BIAS = _core.LINEAR_OTHER, _core.LINEAR_NORM_WEIGHT, _core.LINEAR_NORM_BIAS
ADDED, SHARED = _core.LINEAR_ADDED, _core.LINEAR_FIRST_MATRIX
# Those on a GPU (lowering/device_linear.py), by form and number format.
DEVICE_KINDS = {
    f"{form}Linear_{name}": inputs
    for form, inputs in (("Plain", _core.PLAIN_MATRIX_INPUTS), ("Blocks", _core.BLOCK_MATRIX_INPUTS))
    for name in ("float32", "bfloat16", "float16")
}
MATRIX = {  # inputs of a matrix
    "TokenLinear": _core.CHANNEL_MATRIX_INPUTS,
    "BlockLinear": _core.BLOCK_MATRIX_INPUTS,
} | DEVICE_KINDS
MOST_LAYERS = _core.MOST_LINEAR_LAYERS
NORM_KINDS = {"RMSNormalization": 1, "LayerNormalization": 2}  # their attribute `norm`


def linear_node(
    kind: str,
    name: str,
    x: str,
    other: str,
    slope: float,
    matrix: Sequence[str],
    output: str,
    **attributes: int,
) -> NodeProto:
    """One layer: `matrix` are the inputs that describe it, "" for what is not there.

    Bits of the attributes `mapped` and `zero_points` stand for layers.
    """
    inputs = [x, *[""] * (SHARED - 1), *matrix]
    inputs[OTHER] = other
    return helper.make_node(
        kind,
        _without_trailing(inputs),
        [output],
        f"{name}.linear",
        domain=_core.OPERATOR_DOMAIN,
        layers=1,
        slope=slope,
        **attributes,
    )


def fuse_linear(model: ModelProto) -> None:
    """Let the linear operators of a graph take in residuals, neighbours over the same input and norms."""
    _add_residuals(model)
    _join_neighbours(model)
    _take_norms(model)
    drop_unread(model.graph)


def _add_residuals(model: ModelProto) -> None:
    """x + layer(y): the sum is the layer's output."""
    graph = model.graph
    readers = only_readers(graph)
    constants = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        add = readers.get(node.output[0]) if node.op_type in MATRIX else None
        if add is None or add.op_type != "Add" or add.name in replacements:
            continue
        added = next(name for name in add.input if name != node.output[0])
        if added in constants:
            continue
        fused = _copy(node)
        fused.input[ADDED] = added
        fused.output[0] = add.output[0]
        replacements |= {node.name: [], add.name: [fused]}  # where the sum was: all its inputs are there
    replace_nodes(graph, replacements)


def _join_neighbours(model: ModelProto) -> None:
    """Layers of one form over one input become one node, in the place of the first."""
    graph = model.graph
    groups: dict[tuple, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type in MATRIX and not node.input[ADDED]:
            form = tuple(sorted((a.name, a.i, a.f) for a in node.attribute if a.name not in _PER_LAYER))
            groups[(node.op_type, *node.input[:SHARED], form)].append(node)
    replacements: dict[str, list[NodeProto]] = {}
    for nodes in groups.values():
        for start in range(0, len(nodes), MOST_LAYERS):
            together = nodes[start : start + MOST_LAYERS]
            if len(together) > 1:
                replacements |= {node.name: [] for node in together}
                replacements[together[0].name] = [_joined(together)]
    replace_nodes(graph, replacements)


_PER_LAYER = ("layers", "mapped", "zero_points")


def _joined(nodes: Sequence[NodeProto]) -> NodeProto:
    joined = _copy(nodes[0])
    width = MATRIX[joined.op_type]
    inputs = list(joined.input[:SHARED])
    for node in nodes:
        matrix = list(node.input[SHARED:])
        inputs += matrix + [""] * (width - len(matrix))
    del joined.input[:]
    joined.input.extend(_without_trailing(inputs))
    del joined.output[:]
    joined.output.extend(node.output[0] for node in nodes)
    _set(joined, "layers", len(nodes))
    for name in ("mapped", "zero_points"):
        bits = sum(attribute(node, name) << layer for layer, node in enumerate(nodes))
        if bits:
            _set(joined, name, bits)
    return joined


def _take_norms(model: ModelProto) -> None:
    """A norm that nothing but one linear operator reads is part of it."""
    graph = model.graph
    made_by, readers = producers(graph), only_readers(graph)
    for node in graph.node:
        norm = made_by.get(node.input[0]) if node.op_type in MATRIX else None
        if norm is None or norm.op_type not in NORM_KINDS or readers.get(norm.output[0]) is not node:
            continue
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in norm.attribute}
        activated = any(entry.name == "slope" and entry.f for entry in node.attribute)
        if attributes.get("axis", -1) != -1 or activated or node.input[OTHER]:
            continue
        node.input[0] = norm.input[0]
        node.input[NORM_WEIGHT] = norm.input[1]
        node.input[NORM_BIAS] = norm.input[2] if len(norm.input) > 2 else ""
        node.attribute.append(helper.make_attribute("norm", NORM_KINDS[norm.op_type]))
        node.attribute.append(helper.make_attribute("epsilon", attributes.get("epsilon", 1e-5)))


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _set(node: NodeProto, name: str, value: int) -> None:
    for entry in node.attribute:
        if entry.name == name:
            entry.i = value
            return
    node.attribute.append(helper.make_attribute(name, value))


def _without_trailing(inputs: list[str]) -> list[str]:
    while not inputs[-1]:
        inputs.pop()
    return inputs
