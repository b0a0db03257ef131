"""int8 products as ONNX Runtime's MatMulIntegerToFloat: two passes over the result less.

The portable form makes integers, floats of them, multiplies by a token's scale, then by an output's. This one
leaves the product as floats that the output's scale has multiplied already.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper

from qwen2vl_rt.lowering.graph import (
    CONTRIB_DOMAIN,
    constant,
    drop_unread,
    initializers,
    only_readers,
    replace_nodes,
    use_contrib_operators,
)

ONE = "integer_product.one"


def to_matmul_integer_to_float(model: ModelProto) -> None:
    """Replace MatMulInteger, Cast, Mul by token, Mul by output by MatMulIntegerToFloat and Mul, in place.

    The two scales are multiplied in the other order: the results differ in the last bit of float32.
    """
    graph = model.graph
    readers = only_readers(graph)
    tensors = initializers(graph)
    replacements: dict[str, list[NodeProto]] = {}
    for product in graph.node:
        if product.op_type != "MatMulInteger":
            continue
        chain = followers(product, readers, ("Cast", "Mul", "Mul"))
        if chain is None:
            continue
        counts, by_token, by_output = chain
        token_scale = next(name for name in by_token.input if name != counts.output[0])
        output_scale = next(name for name in by_output.input if name != by_token.output[0])
        if output_scale not in tensors or token_scale in tensors:
            continue
        codes, weight, zero_point = product.input[:3]
        floats = f"{product.name}.by_output"
        replacements |= {
            product.name: [
                helper.make_node(
                    "MatMulIntegerToFloat",
                    [codes, weight, ONE, output_scale, zero_point],
                    [floats],
                    floats,
                    domain=CONTRIB_DOMAIN,
                )
            ],
            counts.name: [],
            by_token.name: [],
            by_output.name: [
                helper.make_node("Mul", [floats, token_scale], [by_output.output[0]], by_output.name)
            ],
        }
    if replacements:
        constant(graph, ONE, 1, TensorProto.FLOAT)
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_contrib_operators(model)


def followers(
    node: NodeProto, readers: dict[str, NodeProto], kinds: tuple[str, ...]
) -> list[NodeProto] | None:
    """The nodes of these kinds that read, one after the other, nothing but the one before; None otherwise."""
    chain = []
    for kind in kinds:
        node = readers.get(node.output[0])
        if node is None or node.op_type != kind:
            return None
        chain.append(node)
    return chain
