"""Rounding of activations to 8 bits as the project's own QuantizeTokens (csrc/integer), and what leads to it.

The portable form is a chain of eight operators, each a pass over the tensor. This one also takes in what a
product and the activation function leave to do: the token's scale, the bias, the sigmoid, the gate.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.graph import drop_unread, initializers, producers, replace_nodes, use_own_operators

CHAIN = ("Cast", "Add", "Round", "Div")  # of a token's codes, from the last operator to the first


def to_quantize_tokens(model: ModelProto) -> None:
    """Replace Abs, ReduceMax, Max, Mul, Div, Round, Add, Cast to UINT8 by QuantizeTokens, in place.

    A scale or bias that it takes in is multiplied or added without a rounding between: activations on the
    border of two codes may take the other one.
    """
    graph = model.graph
    activations = Activations(model)
    replacements = {}
    for cast in graph.node:
        divide = activations.chain(cast)
        if divide is None:
            continue
        inputs, slope = activations.inputs(divide.input[0])
        while not inputs[-1]:
            inputs.pop()
        node = helper.make_node(
            "QuantizeTokens",
            inputs,
            [cast.output[0], divide.input[1]],
            f"{cast.name}.tokens",
            domain=_core.OPERATOR_DOMAIN,
            slope=slope,
        )
        # In the place of the scale's own node: products before the codes may read it already.
        replacements |= {cast.name: [], activations.made_by[divide.input[1]].name: [node]}
    if replacements:
        replace_nodes(graph, replacements)
        drop_unread(graph)
        use_own_operators(model)


class Activations:
    """What leads to the tensors of a graph: products' scales and biases, sigmoids, gates."""

    def __init__(self, model: ModelProto) -> None:
        self.made_by = producers(model.graph)
        self._tensors = initializers(model.graph)

    def chain(self, cast: NodeProto) -> NodeProto | None:
        """The Div that a Cast to codes goes back to."""
        node: NodeProto | None = cast
        for kind in CHAIN:
            if node is None or node.op_type != kind:
                return None
            last, node = node, self.made_by.get(node.input[0])
        scale = self.made_by.get(last.input[1])
        return last if cast.attribute[0].i == TensorProto.UINT8 and scale is not None else None

    def inputs(self, x: str) -> tuple[list[str], float]:
        """What x is made of: the inputs (x; its scale, bias; other, its scale) and the slope of
        integer/quantize.h's activation, with "" for what is not there."""
        node = self.made_by.get(x)
        if node is not None and node.op_type == "Mul":
            for gated, other in (node.input, reversed(node.input)):
                sigmoid = self._sigmoid(gated)
                if sigmoid is not None:
                    a, slope = sigmoid
                    other, other_scale, other_bias = self._scaled(other)
                    if not other_bias:
                        return [*self._scaled(a), other, other_scale], slope
        sigmoid = self._sigmoid(x)
        if sigmoid is not None:
            a, slope = sigmoid
            return [*self._scaled(a), "", ""], slope
        return [x, "", "", "", ""], 0.0

    def unscaled_inputs(self, x: str) -> tuple[str, str, float]:
        """As `inputs`, for operators that take in no scale or bias: (x, other, slope), x as it is where x is
        made of one."""
        (source, scale, bias, other, other_scale), slope = self.inputs(x)
        return (x, "", 0.0) if scale or bias or other_scale else (source, other, slope)

    def _sigmoid(self, y: str) -> tuple[str, float] | None:
        """a and s of y = a * sigmoid(s * a)."""
        node = self.made_by.get(y)
        if node is None or node.op_type != "Mul":
            return None
        for a, gate in (node.input, reversed(node.input)):
            sigmoid = self.made_by.get(gate)
            if sigmoid is None or sigmoid.op_type != "Sigmoid":
                continue
            if sigmoid.input[0] == a:
                return a, 1.0
            steeper = self.made_by.get(sigmoid.input[0])
            if steeper is not None and steeper.op_type == "Mul" and steeper.input[0] == a:
                slope = self._tensors.get(steeper.input[1])
                if slope is not None and not slope.dims:
                    return a, float(numpy_helper.to_array(slope))
        return None

    def _scaled(self, y: str) -> tuple[str, str, str]:
        """x, scale and bias of y = x * scale [.., 1] + bias [K], "" for what is not there."""
        bias = ""
        node = self.made_by.get(y)
        if node is not None and node.op_type == "Add" and node.input[1] in self._tensors:
            bias = node.input[1]
            node = self.made_by.get(node.input[0])
        if node is not None and node.op_type == "Mul":
            product = self.made_by.get(node.input[0])
            if product is not None and product.op_type == "MatMulIntegerToFloat":
                return node.input[0], node.input[1], bias
        return y, "", ""
