"""A decoder's layers as the project's own operators on a GPU (csrc/cuda/linear_operator.h).

One launch does what stands around a product, too: the norm before it, bias, rotary embedding, gate and
residual behind it; queries, keys and values are one launch, gate and up another. At one token a launch costs
about as much as a small matrix, so that their number decides.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from qwen2vl_rt.lowering.graph import (
    attribute,
    bias_behind,
    drop_unread,
    initializers,
    only_readers,
    producers,
    replace_nodes,
    use_own_operators,
)
from qwen2vl_rt.lowering.linear import DEVICE_KINDS, MATRIX, MOST_LAYERS, SHARED, fuse_linear, linear_node
from qwen2vl_rt.number_formats import format_named


def to_device_linear(model: ModelProto, weights: dict[str, np.ndarray], element_type: int) -> None:
    """Replace products with constant matrices, and what stands around them, in place.

    `element_type`: of the graph once it has been narrowed, FLOAT, BFLOAT16 or FLOAT16. The matrices are those
    of MatMul, which become [N, K] (a transposed view of the same memory), of Gemm over a table [N, K] and of
    MatMulNBits, which stay as they are.
    """
    graph, name = model.graph, format_named(element_type).dtype
    readers, tensors = only_readers(graph), initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    transposed: set[str] = set()
    for product in graph.node:
        found = _matrix(product, tensors, weights, transposed)
        if found is None:
            continue
        kind, matrix, outputs, attributes = found
        last = product
        if not matrix[-1]:
            last, matrix[-1] = bias_behind(product.output[0], outputs, readers, tensors) or (product, "")
        replacements |= {product.name: [], last.name: []}
        operator = f"{kind}Linear_{name}"
        source, output = product.input[0], last.output[0]
        node = linear_node(operator, product.name, source, "", 0.0, matrix, output, **attributes)
        replacements[last.name] = [node]
    replace_nodes(graph, replacements)
    drop_unread(graph)
    use_own_operators(model)
    fuse_linear(model)
    _gate(model)


def rotate_heads(model: ModelProto) -> None:
    """Let the operator that makes queries and keys turn them, too, in place; after `to_flat_heads`."""
    graph = model.graph
    readers = only_readers(graph)
    taken = set()
    for node in graph.node:
        if node.op_type not in DEVICE_KINDS:
            continue
        rotaries: list[NodeProto] = []
        for output in node.output[: attribute(node, "layers")]:
            rotary = readers.get(output)
            if rotary is None or rotary.op_type != "RotaryEmbedding":
                break
            rotaries.append(rotary)
        if not rotaries or any(list(one.input[1:]) != list(rotaries[0].input[1:]) for one in rotaries):
            continue
        tables = SHARED + MOST_LAYERS * MATRIX[node.op_type]
        node.input.extend([""] * (tables - len(node.input)) + list(rotaries[0].input[1:3]))
        node.attribute.append(helper.make_attribute("rotated", len(rotaries)))
        for index, rotary in enumerate(rotaries):
            node.output[index] = rotary.output[0]
            taken.add(rotary.name)
    replace_nodes(graph, {name: [] for name in taken})


def _matrix(
    product: NodeProto, tensors: dict[str, TensorProto], weights: dict[str, np.ndarray], transposed: set[str]
) -> tuple[str, list[str], int, dict[str, int]] | None:
    """The operator's form, a product's matrix as its inputs, the bias last, its outputs and attributes.

    `transposed`: matrices that have become [N, K] already.
    """
    if product.op_type == "MatMulNBits":
        codes, scale, zero_points, _group, bias = [*product.input[1:], "", "", ""][:5]
        attributes = {"bits": attribute(product, "bits")}
        return "Blocks", [codes, scale, zero_points, bias], attribute(product, "N"), attributes
    by_rows = product.op_type == "Gemm" and attribute(product, "transB") and len(product.input) == 2
    weight = product.input[1] if product.op_type == "MatMul" or by_rows else ""
    if weight not in weights or len(tensors[weight].dims) != 2:
        return None
    if not by_rows and weight not in transposed:
        transposed.add(weight)
        weights[weight] = weights[weight].T
        tensors[weight].dims[:] = weights[weight].shape
    return "Plain", [weight, ""], tensors[weight].dims[0], {}


def _gate(model: ModelProto) -> None:
    """silu(gate) * up of one operator's two results: its one result."""
    graph = model.graph
    made_by = producers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in graph.node:
        if product.op_type != "Mul":
            continue
        silu, up = (made_by.get(name) for name in product.input)
        if silu is None or up is None or silu.op_type != "Mul":
            continue
        sigmoid = made_by.get(silu.input[1])
        if sigmoid is None or sigmoid.op_type != "Sigmoid" or sigmoid.input[0] != silu.input[0]:
            continue
        layer = made_by.get(silu.input[0])
        if layer is not up or layer.op_type not in DEVICE_KINDS or attribute(layer, "layers") != 2:
            continue
        if list(layer.output) != [silu.input[0], product.input[1]]:
            continue
        del layer.output[:]
        layer.output.append(product.output[0])
        layer.attribute.append(helper.make_attribute("gated", 1))
        replacements |= {node.name: [] for node in (sigmoid, silu, product)}
    replace_nodes(graph, replacements)
