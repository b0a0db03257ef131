"""Every form of the graphs for TensorRT means what the portable graph means.

Each is run in ONNX Runtime, operator by operator. What TensorRT's parser drops and `tensorrt.network` sets
again on the parsed network ("lengths") is the portable graph itself here.
"""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.graph import add_weight
from qwen2vl_rt.lowering.tensorrt import Form, lower_decoder, lower_vision
from qwen2vl_rt.lowering.tensorrt.fp8_products import to_fp8_products
from qwen2vl_rt.lowering.widen import widen_to_float32
from qwen2vl_rt.weights import load_graph
from tests.support.graph_feeds import (
    decoder_feed,
    evaluate_bfloat16,
    portable,
    run,
    vision_feed,
    with_weights,
)
from tests.support.random_model import random_model, save_checkpoint

CAPACITY = 40
FORMS = ("lengths", "mask", "primitives")
STEPS = {
    "prefill": ([0], 7, [6]),
    "chunk": ([9], 5, [0, 4]),
    "decode": ([9], 1, [0]),
    "batch of different lengths": ([0, 17, 3], 1, [0]),
    "chunk over different lengths": ([4, 0, 11], 3, [2]),
    "last positions": ([CAPACITY - 4], 4, [3]),
}


def assert_close(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    """`relative` to the largest expected magnitude."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def assert_same_step(actual: dict, expected: dict, past: list[int], tokens: int, relative: float) -> None:
    """Logits are equal, and so is what the step leaves in the cache, whoever writes it."""
    assert actual["logits"].dtype == np.float32
    assert_close(actual["logits"], expected["logits"], relative)
    for name in (name for name in expected if name.startswith("present_")):
        for row, length in enumerate(past):
            new = expected[name][row, :, length : length + tokens]
            if name in actual:
                valid = np.s_[row, :, : length + tokens]
                assert_close(actual[name][valid].astype(np.float32), expected[name][valid], relative)
            else:
                written = actual[name.replace("present_", "new_")][row]
                assert_close(written.astype(np.float32), new, relative)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("step", STEPS)
def test_decoder(bundles, step, attention):
    bundle, (past, tokens, rows) = bundles["fp32"], STEPS[step]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    expected = portable(bundle, "decoder.onnx", feed)
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form("fp32", attention), CAPACITY)
    assert_same_step(run(model, weights, feed), expected, past, tokens, 1e-5)


@pytest.mark.parametrize("attention", ["lengths", "primitives"])
@pytest.mark.parametrize(("pictures", "patches"), [(1, 16), (3, 24)])
def test_vision(bundles, pictures, patches, attention):
    bundle = bundles["fp32"]
    feed = vision_feed(bundle, pictures, patches)
    model, weights = load_graph(bundle, "vision.onnx")
    lower_vision(model, weights, bundle.geometry, Form("fp32", attention))
    expected = portable(bundle, "vision.onnx", feed)["visual_embeddings"]
    assert_close(run(model, weights, feed)["visual_embeddings"], expected, 1e-5)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantized_decoder(bundles, precision, attention):
    """In float32 nothing is rounded that the portable graph does not round: the integers are the same."""
    bundle, (past, tokens, rows) = bundles[precision], STEPS["chunk over different lengths"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    expected = portable(bundle, "decoder.onnx", feed)
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form("fp32", attention), CAPACITY)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert not types & {TensorProto.UINT4, TensorProto.UINT8}
    # 8-bit blocks are split; an int8 bundle's matrices are none, and stay what they are.
    assert (TensorProto.INT8 in types) == (precision == "int8")
    assert_same_step(run(model, weights, feed), expected, past, tokens, 1e-5)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_8_bit_blocks_before_sm80(bundles, precision):
    bundle, (past, tokens, rows) = bundles[precision], STEPS["chunk"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form("fp32", split_codes=False), CAPACITY)
    (table,) = (tensor for tensor in model.graph.initializer if tensor.name == "lm_head.weight")
    assert table.data_type == TensorProto.INT8
    assert_same_step(run(model, weights, feed), portable(bundle, "decoder.onnx", feed), past, tokens, 1e-5)


@pytest.mark.parametrize("split", [False, True])
def test_zero_points_become_a_correction(bundles, split):
    """AWQ's blocks have zero points of their own: codes are shifted to the middle, the rest is added."""
    bundle, (past, tokens, rows) = bundles["int4"], STEPS["chunk"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)

    def asymmetric():
        model, weights = load_graph(bundle, "decoder.onnx")
        for name in weights:
            if name.endswith(".zero_point") and ("mlp" in name or "lm_head" in name):
                rng = np.random.default_rng(len(name))
                weights[name] = rng.integers(0, 256, weights[name].shape, np.uint8)
        return model, weights

    expected = run(*asymmetric(), feed)
    assert np.abs(expected["logits"] - portable(bundle, "decoder.onnx", feed)["logits"]).max() > 0.1
    model, weights = asymmetric()
    lower_decoder(model, weights, bundle.geometry, Form("fp32", split_codes=split), CAPACITY)
    corrected = {node.name for node in model.graph.node if node.name.endswith(".correction")}
    if not split:
        assert corrected == {
            "lm_head.correction",
            *(f"layers.{i}.mlp.{part}.flat.correction" for i in range(2) for part in ("gate", "up", "down")),
        }
    assert_same_step(run(model, weights, feed), expected, past, tokens, 1e-5)


def test_int8_vision(bundles):
    bundle, feed = bundles["int8"], vision_feed(bundles["int8"], 2, 16)
    model, weights = load_graph(bundle, "vision.onnx")
    lower_vision(model, weights, bundle.geometry, Form("fp32"))
    assert not [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    expected = portable(bundle, "vision.onnx", feed)["visual_embeddings"]
    assert_close(run(model, weights, feed)["visual_embeddings"], expected, 1e-5)


# The largest deviation from the portable float32 graph, of the largest logit. In int8 an activation that was
# rounded to 16 bit can fall on the next of 127 steps.
NARROWED = {("int4", "fp16"): 2e-3, ("int8", "fp16"): 0.06, ("int4", "bf16"): 0.1, ("int8", "bf16"): 0.15}


@pytest.mark.parametrize("attention", ["mask", "primitives"])
@pytest.mark.parametrize(("precision", "number_format"), NARROWED)
def test_narrowed_decoder(bundles, precision, number_format, attention):
    """Quantized graphs, float32 in the bundle, with 16-bit arithmetic: float16 in ONNX Runtime, bfloat16,
    which its CPU does not multiply, in onnx's reference implementation.
    """
    bundle, (past, tokens, rows) = bundles[precision], STEPS["chunk over different lengths"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    expected = portable(bundle, "decoder.onnx", feed)["logits"]
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form(number_format, attention), CAPACITY)
    evaluate = run if number_format == "fp16" else evaluate_bfloat16
    logits = evaluate(model, weights, feed)["logits"]
    assert logits.dtype == np.float32
    assert_close(logits, expected, NARROWED[precision, number_format])


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.03), ("fp32", 3e-3)])
def test_narrowed_vision(bundles, precision, tolerance):
    bundle, feed = bundles[precision], vision_feed(bundles[precision], 2, 16)
    model, weights = load_graph(bundle, "vision.onnx")
    lower_vision(model, weights, bundle.geometry, Form("fp16", "primitives"))
    expected = portable(bundle, "vision.onnx", feed)["visual_embeddings"]
    actual = run(model, weights, feed)["visual_embeddings"]
    assert actual.dtype == np.float32
    assert_close(actual, expected, tolerance)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bit_bundle(bundles, precision, attention):
    """A graph that is 16 bit already: the weights are bfloat16's here, so float32 results are the same."""
    bundle, (past, tokens, rows) = bundles[precision], STEPS["chunk"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    expected = portable(bundles["fp32"], "decoder.onnx", feed)
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form(precision, attention), CAPACITY)
    onnx.checker.check_model(with_weights(copy.deepcopy(model), weights), full_check=True)
    widen_to_float32(model, weights)
    # float16 rounds a few bfloat16 weights that are very small.
    tolerance = 1e-3 if precision == "fp16" else 1e-5
    assert_same_step(run(model, weights, feed), expected, past, tokens, tolerance)


def test_float16_refuses_what_it_cannot_hold(bundles):
    bundle = bundles["int4"]
    model, weights = load_graph(bundle, "decoder.onnx")
    name = "layers.1.attention.norm.weight"
    weights[name] = np.full_like(weights[name], 1e5)
    with pytest.raises(BackendError, match=r"layers\.1\.attention\.norm\.weight.*float16"):
        lower_decoder(model, weights, bundle.geometry, Form("fp16"), CAPACITY)


def test_partial_blocks_are_refused(tmp_path):
    """TensorRT builds whole blocks only; no published model has others."""
    checkpoint = save_checkpoint(random_model(hidden_size=64, mlp_size=192), tmp_path / "checkpoint")
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", "int4")
    with pytest.raises(BackendError, match="64 inputs"):
        lower_decoder(*load_graph(bundle, "decoder.onnx"), bundle.geometry, Form("bf16"), CAPACITY)


@pytest.mark.parametrize("attention", ["mask", "primitives"])
def test_fp8_decoder(bundles, attention):
    """Near the float graph: e4m3 has 4 bits of significand, in weights and activations."""
    bundle, (past, tokens, rows) = bundles["fp32"], STEPS["chunk over different lengths"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form("fp32", attention, fp8=True), CAPACITY)
    matrices = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN]
    assert sum(len(tensor.dims) == 2 for tensor in matrices) == 7 * bundle.geometry.decoder.layers
    expected = portable(bundle, "decoder.onnx", feed)["logits"]
    difference = run(model, weights, feed)["logits"] - expected
    assert np.linalg.norm(difference) < 0.2 * np.linalg.norm(expected)


def test_fp8_product():
    """One layer, to the last bit: codes of e4m3 on both sides, scales a token and an output."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((64, 8), np.float32) * np.linspace(0.01, 3, 8, dtype=np.float32)
    x = rng.standard_normal((1, 5, 64), np.float32) * np.array([1e-6, 0.1, 1, 30, 0])[None, :, None]
    x = x.astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "y")],
        "layer",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", 64])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", 8])],
    )
    weights: dict[str, np.ndarray] = {}
    add_weight(graph, weights, "w", matrix, TensorProto.FLOAT)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=12)
    to_fp8_products(model, weights, "fp32")

    def codes(values, scale):
        return (values / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)

    by_token = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-10)) * np.float32(1 / 448)
    by_output = np.abs(matrix).max(0) / np.float32(448)
    expected = codes(x, by_token) @ (codes(matrix, by_output) * by_output) * by_token
    actual = run(model, weights, {"x": x})["y"]
    for token in range(5):
        assert_close(actual[0, token], expected[0, token], 1e-5)
    assert not actual[0, 4].any()
