"""int8 products by the project's own TokenLinear, against integers in NumPy and the portable graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.linear import fuse_linear
from qwen2vl_rt.lowering.token_linear import to_token_linear
from tests.lowering.test_quantized_products import IntegerProduct, activations, model_of, portable, run

if not _core.has_integer_linear():
    pytest.skip("TokenLinear needs x86-64 with AVX-512 VNNI", allow_module_level=True)

# N and K are multiples of the kernels' steps, or not; T crosses all of the tiles' heights.
SHAPES = [(64, 32), (131, 48), (5, 1), (256, 33), (1030, 95), (640, 320)]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    to_token_linear(copy, {})
    fuse_linear(copy)
    return copy


def node(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> onnx.ModelProto:
    """A TokenLinear alone."""
    layer = helper.make_node(
        "TokenLinear", ["x", "", "", "", "", "w", "s"], ["y"], "y", domain=_core.OPERATOR_DOMAIN, layers=1
    )
    model = model_of(
        [layer],
        ["T", x.shape[-1]],
        [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scale, "s")],
    )
    model.opset_import.append(helper.make_opsetid(_core.OPERATOR_DOMAIN, 1))
    return model


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 11, 12, 13, 29, 70])
@pytest.mark.parametrize("extreme", [False, True], ids=["", "extreme codes"])
def test_integers(tokens, k, n, extreme):
    """With scales of 1 on both sides the results are the integers themselves; none saturates."""
    rng = np.random.default_rng(tokens * k)
    x = rng.integers(-127, 128, (tokens, k))
    codes = rng.integers(-127, 128, (k, n)).astype(np.int8)
    if extreme:
        x[:], codes[:] = np.where(np.arange(k) % 2, 127, -127), 127
        codes[::2] = -127
        x[tokens // 2 :] *= -1
    x[:, 0] = 127  # every token's peak
    y = run(node(x, codes, np.ones(n, np.float32)), {}, x.astype(np.float32))
    np.testing.assert_array_equal(y, (x @ codes.astype(np.int64)).astype(np.float32))


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("k", [256, 131])
@pytest.mark.parametrize("bias", [False, True])
def test_product(tokens, k, bias):
    product = IntegerProduct(k, 48, bias)
    model = lowered(product.model)
    assert kinds(model) == ["TokenLinear"]
    x = activations(2, tokens, k)
    x[:, -1] = 0  # a token of zeros
    np.testing.assert_allclose(run(model, {}, x), portable(product.model, x), rtol=1e-5, atol=1e-6)


def test_a_token_does_not_depend_on_the_others():
    model = lowered(IntegerProduct(200, 70, True).model)
    x = activations(2, 50, 200)
    together = run(model, {}, x)
    for count in (1, 2, 3, 7, 12, 13, 25):
        np.testing.assert_array_equal(run(model, {}, x[:, :count]), together[:, :count])


class Network:
    """A graph of int8 layers, each with its own weights, and what stands between them: x [B, T, k] -> y."""

    def __init__(self, k: int):
        self.k, self.nodes, self.constants = k, [], {}

    def op(self, kind: str, inputs: list[str], output: str, **attributes) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))

    def constant(self, name: str, shape: int | tuple[int, ...], low: float = -1, high: float = 1) -> str:
        rng = np.random.default_rng(len(self.constants))
        self.constants[name] = rng.uniform(low, high, shape).astype(np.float32)
        return name

    def layer(self, name: str, x: str, k: int, n: int) -> str:
        """An IntegerProduct's nodes and constants, renamed; the codes of x are made once."""
        product = IntegerProduct(k, n, bias=True, seed=1 + len(self.constants)).model.graph
        own = {tensor.name for tensor in product.initializer}
        self.constants |= {f"{name}.{t.name}": numpy_helper.to_array(t) for t in product.initializer}

        def renamed(old: str) -> str:
            if old in own:
                return f"{name}.{old}"
            return {"x": x, "y": name}[old[0]] + old[1:]

        made = {output for node in self.nodes for output in node.output}
        for part in product.node:
            output = renamed(part.output[0])
            if output in made:
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(part)
            copy.name = copy.output[0] = output
            copy.input[:] = [renamed(entry) for entry in part.input]
            self.nodes.append(copy)
        return name

    def norm(self, kind: str, x: str, output: str, **attributes) -> str:
        inputs = [x, self.constant(f"{output}.weight", self.k, 0.5, 1.5)]
        if kind == "LayerNormalization":
            inputs.append(self.constant(f"{output}.bias", self.k))
        self.op(kind, inputs, output, **attributes)
        return output

    @property
    def model(self) -> onnx.ModelProto:
        return model_of(
            self.nodes,
            ["B", "T", self.k],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()],
        )

    def lowered(self, tokens: int = 30) -> onnx.ModelProto:
        """The lowered graph, after it was compared with this one on tokens of very different sizes."""
        model = lowered(self.model)
        there = {"x", "", *(tensor.name for tensor in model.graph.initializer)}
        for made in model.graph.node:
            assert there.issuperset(made.input), f"{made.name} stands before what it reads"
            there.update(made.output)
        x = activations(2, tokens, self.k) * 3 + 0.5
        x[:, ::3] *= 1e-3  # where a norm's epsilon counts
        expected, actual = portable(self.model, x), run(model, {}, x)
        error = np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        # A number on the border of two codes may take the other one.
        assert error.max() < 1e-2 and np.median(error) < 2e-3, error
        return model


def mlp(k: int, norm: str) -> Network:
    """A decoder's MLP with one matrix more: a norm, three layers over it, silu(gate) * (up - third), a layer
    of that, and x added. [1, T, k] -> [1, T, k].
    """
    network = Network(k)
    network.norm(norm, "x", "normed", axis=-1, epsilon=1e-6)
    for name in ("gate", "up", "third"):
        network.layer(name, "normed", k, 2 * k + 3)
    network.op("Sigmoid", ["gate"], "sigmoid")
    network.op("Mul", ["gate", "sigmoid"], "silu")
    network.op("Sub", ["up", "third"], "both")
    network.op("Mul", ["silu", "both"], "gated")
    network.layer("down", "gated", 2 * k + 3, k)
    network.op("Add", ["x", "down"], "y")
    return network


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
@pytest.mark.parametrize("k", [16, 37, 256])
def test_layers_join(k, norm, tokens):
    """Norm, layers over one input, activation and residual end in two operators; what they compute stays."""
    model = mlp(k, norm).lowered(tokens)
    assert kinds(model) == ["TokenLinear", "Sub", "TokenLinear"]
    first, _, last = model.graph.node
    assert list(first.output) == ["gate", "up", "third"]
    assert list(last.output) == ["y"]


def test_a_norm_with_other_readers_stays():
    network = Network(16)
    network.norm("RMSNormalization", "x", "normed")
    network.layer("layer", "normed", 16, 16)
    network.op("Mul", ["layer", "normed"], "y")
    model = network.lowered()
    assert kinds(model) == ["RMSNormalization", "TokenLinear", "Mul"]
    assert model.graph.node[1].input[0] == "normed"


def test_a_norm_over_another_axis_stays():
    network = Network(16)
    network.constant("weight", (30, 16), 0.5, 1.5)
    network.op("RMSNormalization", ["x", "weight"], "normed", axis=1)
    network.layer("y", "normed", 16, 16)
    assert kinds(network.lowered()) == ["RMSNormalization", "TokenLinear"]


def test_a_norm_before_an_activation_stays():
    """The operator either normalises or activates."""
    network = Network(16)
    network.norm("LayerNormalization", "x", "normed")
    network.op("Sigmoid", ["normed"], "sigmoid")
    network.op("Mul", ["normed", "sigmoid"], "silu")
    network.layer("y", "silu", 16, 16)
    assert kinds(network.lowered()) == ["LayerNormalization", "TokenLinear"]


def test_no_more_than_three_layers_join():
    network = Network(24)
    for name in "abcd":
        network.layer(name, "x", 24, 40)
    network.op("Concat", [*"abcd"], "y", axis=-1)
    model = network.lowered()
    assert kinds(model) == ["TokenLinear", "TokenLinear", "Concat"]
    assert [list(made.output) for made in model.graph.node[:2]] == [["a", "b", "c"], ["d"]]


def test_layers_over_different_inputs_stay_apart():
    """x, silu(x) and another tensor: the first two differ in the activation only."""
    network = Network(24)
    network.op("Sigmoid", ["x"], "sigmoid")
    network.op("Mul", ["x", "sigmoid"], "silu")
    network.op("Neg", ["x"], "negative")
    for name, source in (("a", "x"), ("b", "silu"), ("c", "negative")):
        network.layer(name, source, 24, 40)
    network.op("Concat", [*"abc"], "y", axis=-1)
    assert kinds(network.lowered()).count("TokenLinear") == 3


def test_residuals_of_neighbours_keep_them_apart():
    """x + a(x) and relu(x) + b(x): the second summand is made after the layer."""
    network = Network(24)
    network.layer("a", "x", 24, 24)
    network.layer("b", "x", 24, 24)
    network.layer("c", "x", 24, 24)
    network.op("Relu", ["x"], "positive")
    network.op("Add", ["x", "a"], "first")
    network.op("Add", ["b", "positive"], "second")
    network.op("Add", ["c", "x"], "third")
    network.op("Concat", ["first", "second", "third"], "y", axis=-1)
    model = network.lowered()
    assert sorted(kinds(model)) == ["Concat", "Relu", *["TokenLinear"] * 3]


def test_a_sum_of_two_layers():
    """One takes the other in."""
    network = Network(24)
    network.op("Neg", ["x"], "negative")
    network.layer("a", "x", 24, 40)
    network.layer("b", "negative", 24, 40)
    network.op("Add", ["a", "b"], "y")
    assert kinds(network.lowered()) == ["Neg", "TokenLinear", "TokenLinear"]


def test_a_constant_is_no_residual():
    """[n] is added to every token, and a layer has its bias already; a residual is one row a token."""
    network = Network(24)
    network.layer("a", "x", 24, 40)
    network.op("Add", ["a", network.constant("more", 40)], "y")
    assert kinds(network.lowered()) == ["TokenLinear", "Add"]


def test_a_number_added_is_no_bias():
    """A bias is a number for each output."""
    network = Network(24)
    network.layer("layer", "x", 24, 40)
    del network.nodes[-1]  # the bias
    network.op("Add", ["layer.product", network.constant("one number", ())], "y")
    assert kinds(network.lowered()) == ["TokenLinear", "Add"]
