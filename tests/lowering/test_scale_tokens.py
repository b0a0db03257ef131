"""Scale, bias and residual after an int8 product in one pass, against the portable operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.lowering.matmul_integer import to_matmul_integer_to_float
from qwen2vl_rt.lowering.scale_tokens import to_scale_tokens
from tests.lowering.test_quantize_tokens import instruction_set, model_of, product, run

__all__ = ["instruction_set"]  # a fixture


@pytest.mark.parametrize("k", [1, 37, 256])
@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize(("bias", "residual"), [(True, False), (False, True), (True, True)])
def test_scale(instruction_set, bias, residual, tokens, k):
    nodes = product("a", bias)
    if residual:
        nodes.append(helper.make_node("Add", ["x", "a"], ["y"], "y"))
    model = model_of(nodes, k)
    del model.graph.output[:]
    output = helper.make_tensor_value_info("y" if residual else "a", TensorProto.FLOAT, None)
    model.graph.output.append(output)
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    to_matmul_integer_to_float(lowered)
    to_scale_tokens(lowered)
    assert [node.op_type for node in lowered.graph.node] == ["MatMulIntegerToFloat", "ScaleTokens"]

    rng = np.random.default_rng(tokens)
    feed = {
        "x": rng.standard_normal((2, tokens, k), np.float32) * 10,
        "x.codes": rng.integers(1, 256, (2, tokens, 24), np.uint8),
        "x.scale": rng.uniform(0.5, 1.5, (2, tokens, 1)).astype(np.float32),
    }
    (actual,), (expected,) = run(lowered, feed), run(model, feed)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_product_that_is_read_as_it_is_stays():
    model = model_of(product("a", False), 8)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    to_matmul_integer_to_float(model)
    to_scale_tokens(model)
    assert [node.op_type for node in model.graph.node] == ["MatMulIntegerToFloat", "Mul"]
    assert _core.OPERATOR_DOMAIN not in [opset.domain for opset in model.opset_import]
