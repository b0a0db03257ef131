"""Rounding to 8 bits, fused with what leads to it, against the portable chain, on every instruction set."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.matmul_integer import to_matmul_integer_to_float
from qwen2vl_rt.lowering.quantize_tokens import to_quantize_tokens

FLOATS = {"step": 1 / 127, "smallest": 1e-10, "shift": 128.0, "steeper": 1.702}


@pytest.fixture(params=_core.instruction_sets())
def instruction_set(request) -> str:
    _core.limit_instruction_set(request.param)
    yield request.param
    _core.limit_instruction_set("")


def chain(x: str) -> list[onnx.NodeProto]:
    """The bundle's operators from x to its codes."""
    return [
        helper.make_node("Abs", [x], ["absolute"], "absolute"),
        helper.make_node("ReduceMax", ["absolute", "last"], ["peak"], "peak", keepdims=1),
        helper.make_node("Max", ["peak", "smallest"], ["positive"], "positive"),
        helper.make_node("Mul", ["positive", "step"], ["scale"], "scale"),
        helper.make_node("Div", [x, "scale"], ["steps"], "steps"),
        helper.make_node("Round", ["steps"], ["rounded"], "rounded"),
        helper.make_node("Add", ["rounded", "shift"], ["shifted"], "shifted"),
        helper.make_node("Cast", ["shifted"], ["codes"], "codes", to=TensorProto.UINT8),
    ]


def product(name: str, bias: bool) -> list[onnx.NodeProto]:
    """`name` = an int8 product of tokens whose scale is `x.scale`."""
    out = f"{name}.product" if bias else name
    nodes = [
        helper.make_node(
            "MatMulInteger", ["x.codes", f"{name}.w", "zero"], [f"{name}.integer"], f"{name}.integer"
        ),
        helper.make_node(
            "Cast", [f"{name}.integer"], [f"{name}.counts"], f"{name}.counts", to=TensorProto.FLOAT
        ),
        helper.make_node("Mul", [f"{name}.counts", "x.scale"], [f"{name}.by_token"], f"{name}.by_token"),
        helper.make_node("Mul", [f"{name}.by_token", f"{name}.s"], [out], out),
    ]
    return [*nodes, helper.make_node("Add", [out, f"{name}.b"], [name], name)] if bias else nodes


def sigmoid(a: str, slope: str | None, y: str) -> list[onnx.NodeProto]:
    nodes = [helper.make_node("Mul", [a, slope], ["scaled"], "scaled")] if slope else []
    nodes.append(helper.make_node("Sigmoid", ["scaled" if slope else a], ["sigmoid"], "sigmoid"))
    return [*nodes, helper.make_node("Mul", [a, "sigmoid"], [y], y)]


PARTS = {
    "as it is": (lambda: [], "x"),
    "quick gelu of a layer": (lambda: product("a", True) + sigmoid("a", "steeper", "y"), "y"),
    "swiglu of two layers": (
        lambda: (
            product("a", False)
            + product("b", False)
            + sigmoid("a", None, "silu")
            + [helper.make_node("Mul", ["silu", "b"], ["y"], "y")]
        ),
        "y",
    ),
    "gate without a scale": (
        lambda: [*sigmoid("x", None, "silu"), helper.make_node("Mul", ["silu", "x"], ["y"], "y")],
        "y",
    ),
}


def model_of(nodes: list[onnx.NodeProto], k: int) -> onnx.ModelProto:
    rng = np.random.default_rng(k)
    arrays = {name: np.float32(value) for name, value in FLOATS.items()} | {"zero": np.uint8(128)}
    arrays["last"] = np.array([-1])
    for name in "ab":
        arrays[f"{name}.w"] = rng.integers(-127, 128, (24, k), np.int8)
        arrays[f"{name}.s"] = rng.uniform(1, 2, k).astype(np.float32) / 500
        arrays[f"{name}.b"] = rng.standard_normal(k, np.float32)
    kinds = {
        "x": (TensorProto.FLOAT, k),
        "x.codes": (TensorProto.UINT8, 24),
        "x.scale": (TensorProto.FLOAT, 1),
    }
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "chain",
        [
            helper.make_tensor_value_info(name, kind, ["B", "T", width])
            for name, (kind, width) in kinds.items()
            if name in read
        ],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(_core.__file__)
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {entry.name: feed[entry.name] for entry in session.get_inputs()})


@pytest.mark.parametrize("k", [1, 37, 256, 1000])
@pytest.mark.parametrize("tokens", [1, 130])
@pytest.mark.parametrize("part", PARTS)
def test_codes(instruction_set, part, tokens, k):
    nodes, y = PARTS[part][0](), PARTS[part][1]
    model = model_of([*nodes, *chain(y)], k)
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    to_matmul_integer_to_float(lowered)
    to_quantize_tokens(lowered)
    kinds = {node.op_type for node in lowered.graph.node}
    assert kinds <= {"QuantizeTokens", "MatMulIntegerToFloat"}

    rng = np.random.default_rng(tokens)
    feed = {
        "x": rng.standard_normal((2, tokens, k), np.float32) * 10,
        "x.codes": rng.integers(1, 256, (2, tokens, 24), np.uint8),
        "x.scale": rng.uniform(0.5, 1.5, (2, tokens, 1)).astype(np.float32),
    }
    feed["x"][0, 0] = 0  # a token of zeros has a scale, too
    feed["x"][1, 0] = -200 * np.arange(k)  # far outside of where the sigmoid is anything but 0 or 1
    codes, scale = run(lowered, feed)
    expected_codes, expected_scale = run(model, feed)
    if part == "as it is":
        np.testing.assert_array_equal(codes, expected_codes)
        np.testing.assert_array_equal(scale, expected_scale)
        return
    # Where all of a token's numbers are next to nothing, the engine's sigmoid is 0.
    np.testing.assert_allclose(scale, expected_scale, rtol=2e-6, atol=1e-6)
    apart = np.abs(codes.astype(int) - expected_codes)[expected_scale[..., 0] > 1e-3]
    assert apart.max(initial=0) <= 1 and np.count_nonzero(apart) <= 1e-3 * codes.size
