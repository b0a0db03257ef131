"""Every lowering of the cuda backend keeps the meaning of the portable graph, on the CPU's kernels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from qwen2vl_rt.backends.cuda.onnx_session import Provider, PythonSession
from qwen2vl_rt.graph_format import PRESENT_LENGTH
from qwen2vl_rt.lowering.cuda import lower_decoder, lower_vision
from qwen2vl_rt.lowering.group_query_attention import LAST, LONGEST
from qwen2vl_rt.lowering.int8_weights import to_weight_only_int8
from qwen2vl_rt.lowering.widen import widen_to_float32
from qwen2vl_rt.weights import load_graph
from tests.lowering.test_cpu_lowering import portable
from tests.support.graph_feeds import decoder_feed, vision_feed

CPU = Provider("CPUExecutionProvider", "cpu")
CAPACITY = 40


def run(model, weights, bundle, feed) -> list[np.ndarray]:
    read = {value.name for value in model.graph.input}
    session = PythonSession(model, weights, bundle.path, CPU).session
    return session.run(None, {name: value for name, value in feed.items() if name in read})


def with_lengths(feed: dict) -> dict:
    present = feed["past_length"] + feed["inputs_embeds"].shape[1]
    return feed | {
        LAST: (present - 1).astype(np.int32),
        LONGEST: np.array(present.max(), np.int32),
        PRESENT_LENGTH: present,
    }


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("past", "tokens", "rows"),
    [([0], 7, [6]), ([9], 5, [0]), ([9], 1, [0]), ([0, 17, 3], 1, [0]), ([36], 4, [3])],
    ids=["prefill", "chunk", "decode", "batch of different lengths", "last positions"],
)
def test_decoder(bundles, grouped, past, tokens, rows):
    bundle = bundles["fp32"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    expected = portable(bundle, "decoder.onnx", feed)
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, grouped=grouped)
    names = {value.name for value in model.graph.input}
    assert (LAST in names) == grouped
    assert (PRESENT_LENGTH in names) != grouped
    kinds = [node.op_type for node in model.graph.node]
    if grouped:  # no transposes are left, and nothing that computes lengths
        assert not {"Transpose", "Attention", "TensorScatter", "RMSNormalization"} & set(kinds)
    actual = run(model, weights, bundle, with_lengths(feed))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-4 * np.abs(expected[0]).max())
    for present, present_expected in zip(actual[1:], expected[1:], strict=True):
        for row, length in enumerate(past):
            valid = np.s_[row, :, : length + tokens]
            np.testing.assert_allclose(present[valid], present_expected[valid], rtol=1e-4, atol=1e-4)


def test_in_decode_the_longest_length_may_be_the_capacity(bundles):
    """The host doesn't know the lengths of a step that it runs ahead of: each row's own decides."""
    bundle = bundles["fp32"]
    feed = with_lengths(decoder_feed(bundle, [5, 17], 1, [0], CAPACITY))
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry)
    expected = run(model, weights, bundle, feed)[0]
    model, weights = load_graph(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry)
    actual = run(model, weights, bundle, feed | {LONGEST: np.array(40, np.int32)})[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_vision(bundles):
    bundle = bundles["fp32"]
    feed = vision_feed(bundle, pictures=2, patches=24)
    (expected,) = portable(bundle, "vision.onnx", feed)
    model, weights = load_graph(bundle, "vision.onnx")
    lower_vision(model, weights, bundle.geometry)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuickGelu") == kinds.count("MultiHeadAttention") == bundle.geometry.vision.depth
    assert not {"Transpose", "Sigmoid", "Mul"} & set(kinds)
    (actual,) = run(model, weights, bundle, feed)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("graph", ["decoder.onnx", "vision.onnx"])
@pytest.mark.parametrize("kind", ["bf16", "fp32", "int4", "int8"])
def test_16_bit_graphs_are_16_bit_throughout_and_widen_to_the_same(bundles, kind, graph):
    """No CPU kernel multiplies bfloat16; the lowered graph, widened again, computes what it should."""
    bundle = bundles[kind]
    lower = lower_decoder if graph == "decoder.onnx" else lower_vision
    narrow = None if kind == "bf16" else TensorProto.BFLOAT16
    model, weights = load_graph(bundle, graph)
    lower(model, weights, bundle.geometry, narrow=narrow)
    outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    assert outputs.pop("logits", outputs.pop("visual_embeddings", None)) == TensorProto.FLOAT
    assert set(outputs.values()) <= {TensorProto.BFLOAT16}
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert all(array.dtype != np.float32 for array in weights.values())
    feed = (
        with_lengths(decoder_feed(bundle, [9], 5, [4], CAPACITY))
        if graph == "decoder.onnx"
        else vision_feed(bundle, pictures=2, patches=24)
    )
    feed = {
        name: value.astype(ml_dtypes.bfloat16).astype(np.float32) if value.dtype == np.float32 else value
        for name, value in feed.items()
    }
    widen_to_float32(model, weights)
    actual = run(model, weights, bundle, feed)[0]
    exact = bundles["fp32"] if kind in ("bf16", "fp32") else bundle
    expected = portable(
        exact, graph, {n: v for n, v in feed.items() if n not in (LAST, LONGEST, PRESENT_LENGTH)}
    )[0]
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    # bf16, fp32: constants such as quick-gelu's lose bits. int4: scales, too. int8: the portable graph rounds
    # activations to 8 bits, this one doesn't.
    assert error < {"bf16": 1e-3, "fp32": 1e-3, "int4": 0.05, "int8": 0.05}[kind]


def test_weight_only_int8_keeps_codes_and_scales(bundles):
    bundle = bundles["int8"]
    model, weights = load_graph(bundle, "decoder.onnx")
    before = dict(weights)
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    name = products[0].input[1]
    scale = next(key for key in before if key == f"{name}.scale")
    matrix = before[name].astype(np.float32) * before[scale]
    to_weight_only_int8(model, weights)
    assert not {"MatMulInteger", "Round"} & {node.op_type for node in model.graph.node}
    k, n = matrix.shape
    codes = weights[name].reshape(n, -1)[:, :k].astype(np.float32) - 128
    np.testing.assert_array_equal(codes * weights[scale][:, :1], matrix.T)


def test_the_provider_must_be_there():
    from qwen2vl_rt.errors import BackendError

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("ONNX Runtime has the CUDA provider here")
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N] x) => (float[N] y) { y = Abs(x) }'
    )
    with pytest.raises(BackendError, match="CUDA"):
        PythonSession(model, {}, ".", Provider("CUDAExecutionProvider", "cuda"))
