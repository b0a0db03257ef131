"""Products with integer weights, lowered, against the portable operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qwen2vl_rt.backends.cpu.onnx_session import OnnxSession
from qwen2vl_rt.lowering.matmul_integer import to_matmul_integer_to_float
from qwen2vl_rt.lowering.matmul_nbits import to_matmul_nbits

BLOCK = 128
TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}

# What accuracy level 4 may add: activations rounded to 1/254 of a block's peak. Over K random terms the
# errors add up like their root mean square: about 1/100 of the result's norm, whatever K.
ROUNDED_ACTIVATIONS = 0.015


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as an ONNX tensor stores them: of two 4-bit codes in a byte, the first in the low half."""
    if bits == 8:
        return codes
    flat = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.uint8))
    return flat[::2] | flat[1::2] << 4


class BlockedProduct:
    """x @ W^T for W [n, k] in blocks along k, in the bundle's form."""

    def __init__(
        self,
        n: int,
        k: int,
        bits: int,
        *,
        symmetric: bool = True,
        short: bool = False,
        gemm: bool = False,
        bias=False,
    ):
        rng = np.random.default_rng(n * k)
        blocks, middle = -(-k // BLOCK), 1 << (bits - 1)
        self.codes = rng.integers(0, 2 * middle, (n, k), np.uint8)
        self.scale = rng.uniform(0.5, 1.5, (n, blocks)).astype(np.float32) / (middle * k**0.5)
        if short:  # as the exporter's are
            self.scale = self.scale.astype(np.float16).astype(np.float32)
        self.zero_point = rng.integers(0, 2 * middle, (n, blocks), np.uint8)
        if symmetric:
            self.zero_point[:] = middle
        self.bias = rng.standard_normal(n, np.float32)
        parts = ["w", "w.scale", "w.zero_point"]
        nodes = [
            helper.make_node(
                "DequantizeLinear", parts, ["w.dequantized"], "w.dequantized", axis=1, block_size=BLOCK
            )
        ]
        product = "y.product" if bias else "y"
        if gemm:
            nodes.append(helper.make_node("Gemm", ["x", "w.dequantized"], [product], product, transB=1))
        else:
            nodes += [
                helper.make_node(
                    "Transpose", ["w.dequantized"], ["w.transposed"], "w.transposed", perm=[1, 0]
                ),
                helper.make_node("MatMul", ["x", "w.transposed"], [product], product),
            ]
        if bias:
            nodes.append(helper.make_node("Add", [product, "b"], ["y"], "y"))
        rows = ["T"] if gemm else ["B", "T"]
        self.rank = len(rows)
        kinds = [TYPES[bits], TensorProto.FLOAT, TYPES[bits]]
        arrays = [self.codes, self.scale, self.zero_point]
        initializers = [
            helper.make_tensor(
                name,
                kind,
                array.shape,
                (array if kind == TensorProto.FLOAT else packed(array, bits)).tobytes(),
                raw=True,
            )
            for name, kind, array in zip(parts, kinds, arrays, strict=True)
        ]
        if bias:
            initializers.append(numpy_helper.from_array(self.bias, "b"))
        self.model = model_of(nodes, [*rows, k], initializers)
        self.weights = {
            "w": packed(self.codes, bits),
            "w.scale": self.scale,
            "w.zero_point": packed(self.zero_point, bits),
        }

    def lowered(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        model, weights = onnx.ModelProto(), dict(self.weights)
        model.CopyFrom(self.model)
        to_matmul_nbits(model, weights)
        return as_external(model, weights), weights


def model_of(nodes, shape, initializers) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)


def as_external(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The initializers among `weights` without their values, as a bundle's graph has them.

    The engine wants to see the file that they name, though it is given the values and never reads it.
    """
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=Path(__file__).name)
    return model


def portable(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The unlowered graph by onnx's reference implementation: no fusions, no saturation."""
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def run(
    model: onnx.ModelProto, weights: dict[str, np.ndarray], x: np.ndarray, pack: bool = True
) -> np.ndarray:
    return OnnxSession(model, weights, Path(__file__).parent, 2, pack)._session.run(None, {"x": x})[0]


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def activations(rank: int, tokens: int, k: int) -> np.ndarray:
    shape = (tokens, k) if rank == 1 else (1, tokens, k)
    return np.random.default_rng(tokens).standard_normal(shape, np.float32)


@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("k", [256, 200, 384, 130])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize(("bits", "gemm"), [(4, False), (8, True)], ids=["int4", "8-bit table"])
def test_blocked_product(tokens, k, symmetric, bits, gemm):
    product = BlockedProduct(48, k, bits, symmetric=symmetric, gemm=gemm)
    model, weights = product.lowered()
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    assert ("w.zero_point" in weights) != symmetric
    x = activations(product.rank, tokens, k)
    assert distance(run(model, weights, x), portable(product.model, x)) < ROUNDED_ACTIVATIONS


def test_an_odd_number_of_inputs():
    """Of the 8-bit table only: a row of 4-bit codes is whole bytes."""
    product = BlockedProduct(40, 131, 8, gemm=True, symmetric=False)
    x = activations(1, 3, 131)
    assert distance(run(*product.lowered(), x), portable(product.model, x)) < ROUNDED_ACTIVATIONS


@pytest.mark.parametrize("tokens", [1, 9])
def test_weights_are_exact_where_activations_are(tokens):
    """Activations that 8 bits hold without error leave nothing but float32 rounding, so that a wrong zero
    point, scale or order of codes cannot hide behind the tolerance.
    """
    for bits, symmetric in ((4, False), (4, True), (8, False)):
        product = BlockedProduct(32, 384, bits, symmetric=symmetric)
        x = np.random.default_rng(1).integers(-127, 128, (1, tokens, 384)).astype(np.float32)
        x[..., ::BLOCK] = 127  # every block's peak, so that a scale is 1
        np.testing.assert_allclose(
            run(*product.lowered(), x), portable(product.model, x), rtol=1e-4, atol=2e-3
        )


def test_a_bias_joins_the_product():
    product = BlockedProduct(32, 256, 4, symmetric=False, bias=True)
    model, weights = product.lowered()
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    x = activations(2, 4, 256)
    assert distance(run(model, weights, x), portable(product.model, x)) < ROUNDED_ACTIVATIONS


def test_whole_blocks_are_not_copied():
    product = BlockedProduct(32, 256, 4)
    _, weights = product.lowered()
    assert np.shares_memory(weights["w"], product.weights["w"])
    assert weights["w"].shape == (32, 2, 64)


def test_a_token_does_not_depend_on_the_others():
    """Within the kernels' rounding: activations are rounded by themselves, never with their neighbours."""
    model, weights = BlockedProduct(64, 384, 4).lowered()
    x = activations(2, 7, 384) * np.float32([1, 100, 1, 1e-3, 1, 1e4, 1])[None, :, None]
    together = run(model, weights, x)
    for token in range(7):
        alone = run(model, weights, x[:, token : token + 1])
        np.testing.assert_allclose(
            together[:, token], alone[:, 0], rtol=1e-4, atol=1e-5 * np.abs(alone).max()
        )


class IntegerProduct:
    """An int8 layer in the bundle's form: u8 activations with a scale a token, s8 weights [k, n]."""

    def __init__(self, k: int, n: int, bias: bool, seed: int = 0):
        rng = np.random.default_rng([seed, k])
        constants = {
            "axis": np.array([-1]),
            "smallest": np.float32(1e-10),
            "step": np.float32(1 / 127),
            "shift": np.float32(128),
            "zero_point": np.uint8(128),
            "w": rng.integers(-127, 128, (k, n)).astype(np.int8),
            "w.scale": rng.uniform(0.5, 1.5, n).astype(np.float32) / (127 * k**0.5),
            "b": rng.standard_normal(n, np.float32),
        }
        nodes = [
            helper.make_node(kind, inputs, [output], output, **attributes)
            for kind, inputs, output, attributes in [
                ("Abs", ["x"], "x.absolute", {}),
                ("ReduceMax", ["x.absolute", "axis"], "x.peak", {"keepdims": 1}),
                ("Max", ["x.peak", "smallest"], "x.positive", {}),
                ("Mul", ["x.positive", "step"], "x.scale", {}),
                ("Div", ["x", "x.scale"], "x.steps", {}),
                ("Round", ["x.steps"], "x.rounded", {}),
                ("Add", ["x.rounded", "shift"], "x.shifted", {}),
                ("Cast", ["x.shifted"], "x.quantized", {"to": TensorProto.UINT8}),
                ("MatMulInteger", ["x.quantized", "w", "zero_point"], "y.integer", {}),
                ("Cast", ["y.integer"], "y.counts", {"to": TensorProto.FLOAT}),
                ("Mul", ["y.counts", "x.scale"], "y.by_token", {}),
                ("Mul", ["y.by_token", "w.scale"], "y.product" if bias else "y", {}),
            ]
            + ([("Add", ["y.product", "b"], "y", {})] if bias else [])
        ]
        initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        self.model = model_of(nodes, ["B", "T", k], initializers)

    def lowered(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        to_matmul_integer_to_float(model)
        return model


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("k", [256, 131])
@pytest.mark.parametrize("bias", [False, True])
def test_integer_product(tokens, k, bias):
    product = IntegerProduct(k, 48, bias)
    model = product.lowered()
    kinds = [node.op_type for node in model.graph.node]
    assert "MatMulIntegerToFloat" in kinds
    assert "MatMulInteger" not in kinds
    x = activations(2, tokens, k)
    expected = portable(product.model, x)
    # The same integers; the order of two float32 products differs.
    np.testing.assert_allclose(run(model, {}, x), expected, rtol=1e-5, atol=1e-6)


def test_a_token_of_zeros_is_the_bias():
    product = IntegerProduct(64, 16, bias=True)
    y = run(product.lowered(), {}, np.zeros((1, 2, 64), np.float32))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y, portable(product.model, np.zeros((1, 2, 64), np.float32)))
