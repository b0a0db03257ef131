"""Products in blocks by the project's own kernel, against the same integers in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.block_linear import to_block_linear
from qwen2vl_rt.lowering.linear import fuse_linear
from tests.lowering.test_quantized_products import BlockedProduct, activations, model_of, run

if not _core.has_integer_linear():
    pytest.skip("BlockLinear needs x86-64 with AVX-512 VNNI", allow_module_level=True)

BLOCK = 128


def expected(product: BlockedProduct, x: np.ndarray) -> np.ndarray:
    """x @ W^T + bias in float64, for x rounded to 8 bits by blocks."""
    *rows, k = x.shape
    padding = -k % BLOCK
    blocks = np.pad(x.reshape(-1, k), ((0, 0), (0, padding))).reshape(-1, (k + padding) // BLOCK, BLOCK)
    x_scale = np.maximum(np.abs(blocks).max(-1, keepdims=True), np.float32(1e-10)) * np.float32(1 / 127)
    rounded = (np.rint(blocks / x_scale) * x_scale.astype(np.float64)).reshape(-1, k + padding)[:, :k]
    scale, zero_point = (
        np.repeat(part, BLOCK, axis=1)[:, :k].astype(np.float64)
        for part in (product.scale, product.zero_point)
    )
    y = rounded @ ((product.codes - zero_point) * scale).T
    return y.reshape(*rows, -1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 21, 100])
@pytest.mark.parametrize(("n", "k"), [(48, 256), (33, 384), (5, 200), (64, 130), (320, 2048)])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("short", [False, True], ids=["float32 scales", "float16 scales"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_product(bits, tokens, n, k, symmetric, short, bias):
    product = BlockedProduct(n, k, bits, symmetric=symmetric, short=short, bias=bias)
    model, weights = product.lowered()
    to_block_linear(model, weights)
    assert [node.op_type for node in model.graph.node] == ["BlockLinear"]
    x = activations(product.rank, tokens, k)
    x[..., : BLOCK // 2] *= 100  # blocks of different scales
    x[:, -1] *= 0  # a token of zeros
    y = expected(product, x) + (product.bias if bias else 0)
    actual = run(model, weights, x)
    np.testing.assert_allclose(actual, y, rtol=0, atol=2e-6 * max(1, np.abs(y).max()))


@pytest.mark.parametrize("tokens", [1, 70])
def test_a_gate_before_it(tokens):
    """silu(x) * x, as a decoder's MLP has it, is part of the operator."""
    product = BlockedProduct(40, 640, 4, symmetric=False)
    model, weights = product.lowered()
    (layer,) = model.graph.node
    layer.input[0] = "gated"
    gate = [
        helper.make_node("Sigmoid", ["x"], ["sigmoid"], "sigmoid"),
        helper.make_node("Mul", ["x", "sigmoid"], ["silu"], "silu"),
        helper.make_node("Mul", ["silu", "x"], ["gated"], "gated"),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*gate, layer])
    to_block_linear(model, weights)
    assert [node.op_type for node in model.graph.node] == ["BlockLinear"]
    x = activations(product.rank, tokens, 640)
    y = expected(product, (x * x / (1 + np.exp(-x))).astype(np.float32))
    # A number on the border of two codes may take the other one.
    actual = run(model, weights, x)
    assert np.linalg.norm(actual - y) < 5e-4 * np.linalg.norm(y)


@pytest.mark.parametrize("scale", [0, 1e-30, 2.0**-39, 65504 / 2**15, 2, 1e30, 3e38])
def test_scales_of_any_size(scale):
    """What has no float16 stays as it is: one such scale, and the largest and smallest that fit."""
    product = BlockedProduct(40, 256, 4, short=True)
    product.scale[3] = scale
    model, weights = product.lowered()
    to_block_linear(model, weights)
    x = activations(product.rank, 2, 256) * np.float32(1e-3)
    y, actual = expected(product, x), run(model, weights, x)
    for own, wanted in ((actual[..., 3], y[..., 3]), (actual, y)):
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_a_table():
    """A Gemm over [V, H], as lm_head has it."""
    product = BlockedProduct(70, 256, 8, gemm=True)
    model, weights = product.lowered()
    to_block_linear(model, weights)
    assert [node.op_type for node in model.graph.node] == ["BlockLinear"]
    x = activations(product.rank, 3, 256)
    np.testing.assert_allclose(run(model, weights, x), expected(product, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_does_not_depend_on_the_others(bits):
    """To the last bit, however many tokens go together: an answer depends on neither chunk nor batch."""
    model, weights = BlockedProduct(70, 384, bits, symmetric=False, bias=True).lowered()
    to_block_linear(model, weights)
    x = activations(2, 130, 384)
    together = run(model, weights, x)
    for count in (1, 2, 3, 4, 5, 6, 7, 95, 96):
        np.testing.assert_array_equal(run(model, weights, x[:, :count]), together[:, :count])


@pytest.mark.parametrize("tokens", [1, 40])
def test_neighbours_of_one_form_join(tokens):
    """Layers over one input: zero points and biases stay their own; other bits are another operator."""
    forms = {
        "a": {"bits": 4, "symmetric": True, "bias": True},
        "b": {"bits": 4, "symmetric": False},
        "c": {"bits": 4, "symmetric": True},
        "d": {"bits": 8, "symmetric": False, "bias": True},
    }
    products = {name: BlockedProduct(40 + i, 300, **form) for i, (name, form) in enumerate(forms.items())}
    nodes, tensors, weights = [], [], {}
    for name, product in products.items():
        own, own_weights = product.lowered()
        (node,) = own.graph.node
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = copy.output[0] = name
        copy.input[1:] = [entry and f"{name}.{entry}" for entry in node.input[1:]]
        nodes.append(copy)
        for tensor in own.graph.initializer:
            tensor.name = f"{name}.{tensor.name}"
            tensors.append(tensor)
        weights |= {f"{name}.{key}": value for key, value in own_weights.items()}
    nodes.append(helper.make_node("Concat", [*forms], ["y"], "y", axis=-1))
    model = model_of(nodes, ["B", "T", 300], tensors)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    to_block_linear(model, weights)
    fuse_linear(model)
    assert [list(node.output) for node in model.graph.node] == [["a", "b", "c"], ["d"], ["y"]]
    x = activations(2, tokens, 300)
    y = [
        expected(product, x) + (product.bias if "bias" in forms[name] else 0)
        for name, product in products.items()
    ]
    np.testing.assert_allclose(run(model, weights, x), np.concatenate(y, -1), rtol=0, atol=2e-5)
