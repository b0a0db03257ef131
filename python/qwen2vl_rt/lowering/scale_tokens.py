"""What is left to do after an int8 product as the project's own ScaleTokens: one pass instead of three."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.graph import (
    drop_unread,
    initializers,
    only_readers,
    producers,
    replace_nodes,
    use_own_operators,
)


def to_scale_tokens(model: ModelProto) -> None:
    """Replace Mul by the tokens' scale, Add of the bias and Add of the residual by ScaleTokens, in place.

    Without a rounding between the first two: results differ in the last bit of float32.
    """
    graph = model.graph
    made_by, readers = producers(graph), only_readers(graph)
    tensors = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for scale in graph.node:
        product = made_by.get(scale.input[0]) if scale.op_type == "Mul" else None
        if product is None or product.op_type != "MatMulIntegerToFloat" or scale.input[1] in tensors:
            continue
        last, bias, added = scale, "", ""
        following = readers.get(last.output[0])
        if following is not None and following.op_type == "Add" and following.input[1] in tensors:
            last, bias = following, following.input[1]
            following = readers.get(last.output[0])
        if following is not None and following.op_type == "Add" and following.input[1] == last.output[0]:
            # x + y: the residual x is there already, since y was computed from it.
            last, added = following, following.input[0]
        if last is scale:
            continue
        inputs = [*scale.input, bias, added] if added else [*scale.input, bias]
        replacements |= {scale.name: [], readers[scale.output[0]].name: []}
        replacements[last.name] = [
            helper.make_node(
                "ScaleTokens", inputs, last.output, f"{last.name}.scaled", domain=_core.OPERATOR_DOMAIN
            )
        ]
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_own_operators(model)
