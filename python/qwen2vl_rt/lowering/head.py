"""The decoder's last product apart from its layers, so that two decoders can share one copy of it."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

from qwen2vl_rt.lowering.graph import drop_unread

HIDDEN = "head.flat"
"""Where the graph is cut: the normalised rows that logits are wanted for, float32 [B * K, hidden]."""
LOGITS = "lm_head"
"""What the head computes of them: float32 [B * K, vocabulary], the memory of [B, K, vocabulary]."""


def split_head(model: ModelProto, hidden_size: int, vocab_size: int) -> ModelProto:
    """Cut a float32 decoder at HIDDEN: `model` keeps the layers, in place; the result is the head."""
    head = ModelProto()
    head.CopyFrom(model)
    head.graph.name = "head"
    hidden = helper.make_tensor_value_info(HIDDEN, TensorProto.FLOAT, ["rows", hidden_size])
    del head.graph.input[:], head.graph.output[:]
    head.graph.input.append(hidden)
    head.graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["rows", vocab_size]))
    # What leads to the cut is dropped with the node that makes it: nobody else reads the layers here.
    nodes = [node for node in head.graph.node if HIDDEN not in node.output]
    del head.graph.node[:]
    head.graph.node.extend(nodes)
    drop_unread(head.graph)

    outputs = [output for output in model.graph.output if output.name != "logits"]
    del model.graph.output[:]
    model.graph.output.extend([hidden, *outputs])
    drop_unread(model.graph)
    return head
