"""Attention as the project's own operators (csrc/attention): rotation, heads, cache and softmax in one.

Around the portable Attention stand a split, reshapes, transposes and rotations, each a pass over the tensor,
and at one token each a launch. The operators read the projections' outputs as they lie, and store no scores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.errors import BackendError, BundleError
from qwen2vl_rt.lowering.graph import drop_unread, only_readers, producers, replace_nodes, use_own_operators

DOMAIN = _core.OPERATOR_DOMAIN


def check_heads(head_dim: int) -> None:
    """Refuse heads of a size that the operators don't take.

    Raises:
        BackendError: it is odd, or too large.
    """
    if head_dim % 2 or head_dim > _core.MOST_ATTENTION_DIM:
        raise BackendError(f"The cpu backend has no attention for heads of {head_dim} numbers.")


def to_picture_attention(model: ModelProto, *, codes: bool) -> None:
    """Replace the vision tower's split, rotations and Attention by one PictureAttention a block, in place.

    Args:
        model: the portable vision graph.
        codes: scores may be products of 8-bit codes, and the rest of bfloat16 numbers, where the CPU
            multiplies those faster.
    """
    graph = model.graph
    made_by, readers = producers(graph), only_readers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for attention in _attentions(graph):
        with _as_exported(attention):
            q, k = (made_by[name] for name in attention.input[:2])
            heads = [_joined(made_by, name) for name in (q.input[0], k.input[0], attention.input[2])]
            split = made_by[heads[0]]
            if heads != split.output:
                raise KeyError(heads)
            inputs, outputs = [split.input[0], q.input[1], q.input[2]], [_merged(readers, attention)]
        name = f"{attention.name}.picture"
        replacements[attention.name] = [
            helper.make_node("PictureAttention", inputs, outputs, name, domain=DOMAIN, codes=int(codes))
        ]
    _put(model, replacements, readers)


def to_cached_attention(model: ModelProto, *, bfloat16: bool) -> None:
    """Replace the decoder's rotations, TensorScatter pair and Attention by one CachedAttention a layer.

    In place. Its cost follows what the cache holds, not its capacity, and any number of rows and tokens goes
    together.

    Args:
        model: the portable decoder.
        bfloat16: products may be of bfloat16 numbers, where the CPU multiplies those faster.
    """
    graph = model.graph
    made_by, readers = producers(graph), only_readers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for attention in _attentions(graph):
        with _as_exported(attention):
            q, keys, values = (made_by[name] for name in attention.input[:3])
            k = made_by[keys.input[1]]
            inputs = [_joined(made_by, name) for name in (q.input[0], k.input[0], values.input[1])]
            inputs += [q.input[1], q.input[2], keys.input[0], values.input[0], keys.input[2]]
            outputs = [_merged(readers, attention), keys.output[0], values.output[0]]
        replacements[attention.name] = [
            helper.make_node(
                "CachedAttention",
                inputs,
                outputs,
                f"{attention.name}.cached",
                domain=DOMAIN,
                bfloat16=int(bfloat16),
            )
        ]
        replacements |= {keys.name: [], values.name: []}
    _put(model, replacements, readers)


@contextlib.contextmanager
def _as_exported(attention: NodeProto) -> Iterator[None]:
    """Around an attention stands what the exporter puts there, or the graph is another's: a BundleError."""
    try:
        yield
    except (KeyError, IndexError, ValueError) as error:
        raise BundleError(
            f"the graph's attention {attention.name} is not as qwen2vl-export writes it (at {error}): check "
            "the bundle with `qwen2vl info BUNDLE --verify`, or export the checkpoint again"
        ) from error


def _attentions(graph: GraphProto) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type == "Attention"]


def _joined(made_by: dict[str, NodeProto], heads: str) -> str:
    """The [B, T, heads * D] that a tensor [B, heads, T, D] is a transposed view of."""
    return made_by[made_by[heads].input[0]].input[0]


def _merged(readers: dict[str, NodeProto], attention: NodeProto) -> str:
    """The [B, T, heads * D] that the attention's output [B, heads, T, D] becomes."""
    return readers[readers[attention.output[0]].output[0]].output[0]


def _put(model: ModelProto, replacements: dict[str, list[NodeProto]], readers: dict[str, NodeProto]) -> None:
    """Replace the attentions; the transpose and reshape after each go with it."""
    graph = model.graph
    for attention in _attentions(graph):
        transpose = readers[attention.output[0]]
        replacements |= {transpose.name: [], readers[transpose.output[0]].name: []}
    replace_nodes(graph, replacements)
    drop_unread(graph)
    use_own_operators(model)
