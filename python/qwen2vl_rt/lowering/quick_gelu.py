"""x * sigmoid(slope * x) as ONNX Runtime's QuickGelu: one pass over the activations instead of three."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper, numpy_helper

from qwen2vl_rt.lowering.graph import (
    CONTRIB_DOMAIN,
    drop_unread,
    initializers,
    producers,
    replace_nodes,
    use_contrib_operators,
)


def to_quick_gelu(model: ModelProto) -> None:
    """Replace Mul by a constant, Sigmoid and Mul over one x by a QuickGelu, in place."""
    graph = model.graph
    made_by = producers(graph)
    constants = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in graph.node:
        sigmoid = made_by.get(product.input[1]) if product.op_type == "Mul" else None
        scaled = (
            made_by.get(sigmoid.input[0]) if sigmoid is not None and sigmoid.op_type == "Sigmoid" else None
        )
        if scaled is None or scaled.op_type != "Mul" or scaled.input[0] != product.input[0]:
            continue
        slope = constants.get(scaled.input[1])
        if slope is None or list(slope.dims) not in ([], [1]):
            continue
        replacements[product.name] = [
            helper.make_node(
                "QuickGelu",
                [product.input[0]],
                [product.output[0]],
                f"{product.name}.quick_gelu",
                domain=CONTRIB_DOMAIN,
                alpha=float(numpy_helper.to_array(slope).reshape(())),
            )
        ]
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_contrib_operators(model)
