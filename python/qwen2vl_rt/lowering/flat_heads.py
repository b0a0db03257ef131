"""Rotary embedding on [B, T, heads * head_dim]: no transposes between the projections and the attention."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qwen2vl_rt.lowering.graph import drop_unread, initializers, producers, replace_nodes


def to_flat_heads(model: ModelProto) -> None:
    """Take Reshape, Transpose, .., Transpose, Reshape around the heads out, in place.

    For graphs whose attention takes [B, T, heads * head_dim] (GroupQueryAttention). RotaryEmbedding takes
    that layout, too, when it is told the number of heads. At one token each transpose costs a launch and
    moves next to nothing.
    """
    graph = model.graph
    made_by, tensors = producers(graph), initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for join in graph.node:
        # join: Reshape(Transpose(x [B, heads, T, D])) back to [B, T, heads * D].
        before = _chain(made_by, join, ("Reshape", "Transpose"))
        if before is None:
            continue
        rotary = made_by.get(before.input[0])
        turned = rotary is not None and rotary.op_type == "RotaryEmbedding"
        split = made_by.get(rotary.input[0] if turned else before.input[0])
        source = _chain(made_by, split, ("Transpose", "Reshape"))
        if source is None or not _undoes(tensors, source, join):
            continue
        flat = source.input[0]
        if turned:
            heads = int(numpy_helper.to_array(tensors[source.input[1]])[2])
            replacements[join.name] = [
                helper.make_node(
                    "RotaryEmbedding",
                    [flat, *rotary.input[1:]],
                    [join.output[0]],
                    f"{join.name}.rotated",
                    interleaved=0,
                    num_heads=heads,
                )
            ]
        else:
            replacements[join.name] = []
            for node in graph.node:
                for index, name in enumerate(node.input):
                    if name == join.output[0]:
                        node.input[index] = flat
    replace_nodes(graph, replacements)
    drop_unread(graph)


def _chain(made_by: dict[str, NodeProto], last: NodeProto | None, kinds: tuple[str, str]) -> NodeProto | None:
    """The node before `last` when the two are of these kinds (last's first)."""
    if last is None or last.op_type != kinds[0]:
        return None
    before = made_by.get(last.input[0])
    return before if before is not None and before.op_type == kinds[1] else None


def _undoes(tensors: dict[str, TensorProto], split: NodeProto, join: NodeProto) -> bool:
    """Whether the Reshape `split` makes heads of the last axis and `join` makes them one again."""
    return [list(tensors[node.input[1]].dims) for node in (split, join)] == [[4], [3]]
