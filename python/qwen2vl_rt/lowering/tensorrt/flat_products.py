"""Products by block-quantized matrices over one axis of tokens, [B * T, K], in the place of [B, T, K].

Where several such products share an input, TensorRT joins them over a single row and doesn't over several.
Profiles of both kinds then hold the matrices twice, in two layouts. Flat, all are joined the same way.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from qwen2vl_rt.lowering.graph import attribute, initializers, integers, op, producers, replace_nodes


def flatten_products(model: ModelProto) -> None:
    """Reshape around every MatMul of [B, T, K] by a matrix dequantized in blocks, in place."""
    graph = model.graph
    made_by, tensors = producers(graph), initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    flattened: set[str] = set()
    for node in graph.node:
        codes = _codes(node, made_by)
        if codes is None:
            continue
        (x, matrix), name = node.input, node.output[0]
        outputs, inputs = tensors[codes].dims
        nodes = []
        if x not in flattened:
            flattened.add(x)
            nodes = [
                op("Reshape", f"{x}.flat", x, integers(graph, -1, inputs)),  # [B * T, K]
                op("Shape", f"{x}.tokens", x, start=0, end=2),  # B, T
            ]
        replacements[node.name] = [
            *nodes,
            op("MatMul", f"{name}.flat", f"{x}.flat", matrix),
            op("Concat", f"{name}.shape", f"{x}.tokens", integers(graph, outputs), axis=0),
            op("Reshape", name, f"{name}.flat", f"{name}.shape"),  # [B, T, N]
        ]
    replace_nodes(graph, replacements)


def _codes(product: NodeProto, made_by: dict[str, NodeProto]) -> str | None:
    """The codes [N, K] behind x @ dequantized^T; None for any other node."""
    node = made_by.get(product.input[1]) if product.op_type == "MatMul" else None
    if node is not None and node.op_type == "Transpose":
        node = made_by.get(node.input[0])
        if node is not None and node.op_type == "DequantizeLinear" and attribute(node, "block_size"):
            return node.input[0]
    return None
