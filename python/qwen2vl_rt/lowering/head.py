"""The decoder's last product apart from its layers, so that two decoders can share one copy of it."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

from qwen2vl_rt.graph_format import HEAD_INPUT, LM_HEAD, LOGITS
from qwen2vl_rt.lowering.graph import drop_unread


def split_head(model: ModelProto, hidden_size: int, vocab_size: int) -> ModelProto:
    """Cut a float32 decoder at HEAD_INPUT: `model` keeps the layers, in place; the result is the head.

    The head computes LM_HEAD of HEAD_INPUT.
    """
    head = ModelProto()
    head.CopyFrom(model)
    head.graph.name = "head"
    hidden = helper.make_tensor_value_info(HEAD_INPUT, TensorProto.FLOAT, ["rows", hidden_size])
    del head.graph.input[:], head.graph.output[:]
    head.graph.input.append(hidden)
    head.graph.output.append(helper.make_tensor_value_info(LM_HEAD, TensorProto.FLOAT, ["rows", vocab_size]))
    # What leads to the cut is dropped with the node that makes it: nobody else reads the layers here.
    nodes = [node for node in head.graph.node if HEAD_INPUT not in node.output]
    del head.graph.node[:]
    head.graph.node.extend(nodes)
    drop_unread(head.graph)

    outputs = [output for output in model.graph.output if output.name != LOGITS]
    del model.graph.output[:]
    model.graph.output.extend([hidden, *outputs])
    drop_unread(model.graph)
    return head
