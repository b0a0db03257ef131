"""Tensors that the runtime gives as inputs instead of letting the graph compute them."""

from __future__ import annotations

from onnx import ModelProto, helper

from qwen2vl_rt.lowering.graph import drop_unread


def cut_at(model: ModelProto, inputs: dict[str, tuple[int, list[str | int]]]) -> None:
    """Make the tensors `inputs` (element type and shape by name) graph inputs, in place.

    What only served to compute them goes, and so do graph inputs that nobody reads any more. On a GPU this
    takes the small integer operators out of the step, some of which run on the CPU and make it wait.
    """
    graph = model.graph
    kept = [node for node in graph.node if not inputs.keys() & set(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread(graph)
    read = {name for node in graph.node for name in node.input}
    remaining = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(remaining)
    for name, (element_type, shape) in inputs.items():
        graph.input.append(helper.make_tensor_value_info(name, element_type, shape))
