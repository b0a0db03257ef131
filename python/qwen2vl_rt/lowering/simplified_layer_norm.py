"""RMSNormalization under the name that ONNX Runtime's CUDA kernels and fusions know it by.

The CUDA provider of 1.31 has no kernel for RMSNormalization: the operator's definition would run as a chain
of six. SimplifiedLayerNormalization is one kernel, and is fused with the residual sum before it.
"""

from __future__ import annotations

from onnx import ModelProto, helper

from qwen2vl_rt.lowering.graph import replace_nodes


def to_simplified_layer_norm(model: ModelProto) -> None:
    """Replace each RMSNormalization by SimplifiedLayerNormalization, with the same inputs, in place."""
    replacements = {}
    for node in model.graph.node:
        if node.op_type == "RMSNormalization":
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            replacements[node.name] = [
                helper.make_node(
                    "SimplifiedLayerNormalization",
                    list(node.input),
                    list(node.output),
                    node.name,
                    **attributes,
                )
            ]
    replace_nodes(model.graph, replacements)
