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
    """With steps and scales of 1 the results are the integers themselves; none saturates."""
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


class Layers:
    """A decoder's MLP with one matrix more: a norm, three layers over it, silu(gate) * (up - third), a layer
    of that, and x added. [1, T, k] -> [1, T, k].
    """

    def __init__(self, k: int, norm: str):
        rng = np.random.default_rng(k)
        self.constants = {"norm.weight": rng.uniform(0.5, 1.5, k).astype(np.float32)}
        inputs = ["x", "norm.weight"]
        if norm == "LayerNormalization":
            inputs.append("norm.bias")
            self.constants["norm.bias"] = rng.standard_normal(k, np.float32)
        self.nodes = [helper.make_node(norm, inputs, ["normed"], "norm", axis=-1, epsilon=1e-6)]
        for name in ("gate", "up", "third"):
            self._layer(name, "normed", k, 2 * k + 3)
        self.nodes += [
            helper.make_node("Sigmoid", ["gate"], ["sigmoid"], "sigmoid"),
            helper.make_node("Mul", ["gate", "sigmoid"], ["silu"], "silu"),
            helper.make_node("Sub", ["up", "third"], ["both"], "both"),
            helper.make_node("Mul", ["silu", "both"], ["gated"], "gated"),
        ]
        self._layer("down", "gated", 2 * k + 3, k)
        self.nodes.append(helper.make_node("Add", ["x", "down"], ["y"], "y"))
        self.model = model_of(
            self.nodes,
            ["B", "T", k],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()],
        )

    def _layer(self, name: str, x: str, k: int, n: int) -> None:
        """An IntegerProduct's nodes and constants, renamed; the codes of x are made once."""
        product = IntegerProduct(k, n, bias=True).model.graph
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


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
@pytest.mark.parametrize("k", [16, 37, 256])
def test_layers_join(k, norm, tokens):
    """Norm, layers over one input, activation and residual end in two operators; what they compute stays."""
    layers = Layers(k, norm)
    model = lowered(layers.model)
    assert kinds(model) == ["TokenLinear", "Sub", "TokenLinear"]
    first, _, last = model.graph.node
    assert list(first.output) == ["gate", "up", "third"]
    assert list(last.output) == ["y"]
    x = activations(2, tokens, k) * 3 + 0.5
    expected, actual = portable(layers.model, x), run(model, {}, x)
    # A number on the border of two codes may take the other one.
    assert np.linalg.norm(actual - expected) < 2e-3 * np.linalg.norm(expected - x)


def test_a_norm_with_other_readers_stays():
    layers = Layers(16, "RMSNormalization")
    layers.model.graph.output.append(helper.make_tensor_value_info("normed", 1, None))
    model = lowered(layers.model)
    assert kinds(model) == ["RMSNormalization", "TokenLinear", "Sub", "TokenLinear"]
