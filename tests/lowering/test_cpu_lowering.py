"""Every lowering of the cpu backend keeps the meaning of the portable graph."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.backends.cpu.onnx_session import EXACT_INT8, OnnxSession
from qwen2vl_rt.bundle import DECODER_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.errors import BackendError, BundleError
from qwen2vl_rt.lowering.cpu import lower_decoder, lower_vision
from qwen2vl_rt.lowering.cpu_attention import to_cached_attention, to_picture_attention
from qwen2vl_rt.weights import load_graph
from tests.support.graph_feeds import decoder_feed, vision_feed

CAPACITY = 40


def portable(bundle: Bundle, graph: str, feed: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    return ort.InferenceSession(str(bundle.file(graph)), options, ["CPUExecutionProvider"]).run(None, feed)


def lowered(bundle: Bundle, graph: str, lower, feed: dict) -> list[np.ndarray]:
    model, weights = load_graph(bundle, graph)
    lower(model, weights, bundle.geometry)
    return OnnxSession(model, weights, bundle.path, 2)._session.run(None, feed)


def test_heads_that_no_operator_takes_are_refused(bundles):
    geometry = bundles["fp32"].geometry
    wide = replace(geometry, decoder=replace(geometry.decoder, head_dim=_core.MOST_ATTENTION_DIM + 2))
    with pytest.raises(BackendError, match=f"heads of {_core.MOST_ATTENTION_DIM + 2} numbers"):
        lower_decoder(*load_graph(bundles["fp32"], DECODER_GRAPH), wide)


@pytest.mark.parametrize(
    ("past", "tokens", "rows"),
    [([0], 7, [6]), ([9], 5, [0, 4]), ([9], 1, [0]), ([0, 17, 3], 1, [0]), ([CAPACITY - 4], 4, [3])],
    ids=["prefill", "chunk", "decode", "batch of different lengths", "last positions"],
)
def test_decoder(bundles, past, tokens, rows):
    bundle = bundles["fp32"]
    feed = decoder_feed(bundle, past, tokens, rows, CAPACITY)
    expected = portable(bundle, "decoder.onnx", feed)
    actual = lowered(bundle, "decoder.onnx", lower_decoder, feed)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-4 * np.abs(expected[0]).max())
    for present, present_expected in zip(actual[1:], expected[1:], strict=True):
        for row, length in enumerate(past):
            valid = np.s_[row, :, : length + tokens]
            np.testing.assert_allclose(present[valid], present_expected[valid], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pictures", "patches"), [(1, 16), (3, 24), (1, 4)])
def test_vision(bundles, pictures, patches):
    bundle = bundles["fp32"]
    feed = vision_feed(bundle, pictures, patches)
    (expected,) = portable(bundle, "vision.onnx", feed)
    (actual,) = lowered(bundle, "vision.onnx", lower_vision, feed)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_widened_weights_compute_in_float32(bundles, precision):
    """The stored 16-bit weights are exact here, so the widened graph must equal the float32 one."""
    feed = decoder_feed(bundles["fp32"], [5], 4, [3], CAPACITY)
    expected = lowered(bundles["fp32"], "decoder.onnx", lower_decoder, feed)[0]
    actual = lowered(bundles[precision], "decoder.onnx", lower_decoder, feed)[0]
    # float16 rounds a few bfloat16 weights that are very small.
    tolerance = 1e-6 if precision == "bf16" else 1e-3
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())


@pytest.fixture(params=["own products", "the engine's int8 products", "no AVX-512"])
def route(request, monkeypatch) -> str:
    """The ways that quantized products may go: the project's operators, or the engine's for lack of them."""
    monkeypatch.setattr(_core, "has_int8_tiles", lambda: request.param == "the engine's int8 products")
    if request.param == "no AVX-512":
        _core.limit_instruction_set("avx2" if "avx2" in _core.instruction_sets() else "portable")
    yield request.param
    _core.limit_instruction_set("")


# Numbers on the border of two codes fall to either side, and int4's activations are rounded in the lowered
# graph only.
@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.02), ("int4", 0.04)])
@pytest.mark.parametrize(("past", "tokens"), [([0], 30), ([9, 2], 1)], ids=["prefill", "decode"])
def test_quantized_decoder(bundles, route, precision, tolerance, past, tokens):
    bundle = bundles[precision]
    feed = decoder_feed(bundle, past, tokens, [tokens - 1], CAPACITY)
    (expected, *_), (actual, *_) = (
        portable(bundle, "decoder.onnx", feed),
        lowered(bundle, "decoder.onnx", lower_decoder, feed),
    )
    assert np.linalg.norm(actual - expected) < tolerance * np.linalg.norm(expected)


def test_quantized_vision(bundles, route):
    bundle = bundles["int8"]
    feed = vision_feed(bundle, 2, 24)
    (expected,), (actual,) = (
        portable(bundle, "vision.onnx", feed),
        lowered(bundle, "vision.onnx", lower_vision, feed),
    )
    # Attention multiplies rounded numbers in the lowered graph only.
    assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)


def test_operators_of_a_quantized_layer(bundles):
    """A decoder's layer is five operators, a block of the tower as many."""
    if not _core.has_integer_linear() or _core.has_int8_tiles():
        pytest.skip("the project's int8 products need AVX-512 VNNI, and no AMX beside it")
    for graph, lower, kinds in (
        ("decoder.onnx", lower_decoder, {"TokenLinear": 4, "CachedAttention": 1}),
        ("vision.onnx", lower_vision, {"TokenLinear": 4, "PictureAttention": 1}),
    ):
        bundle = bundles["int8"]
        model, weights = load_graph(bundle, graph)
        lower(model, weights, bundle.geometry)
        prefix = "layers.0." if graph == "decoder.onnx" else "blocks.0."
        found = Counter(node.op_type for node in model.graph.node if node.name.startswith(prefix))
        assert found == kinds


def test_a_graph_that_the_exporter_did_not_write_is_refused(bundles):
    bundle = bundles["fp32"]
    for file, lower in (
        (VISION_GRAPH, functools.partial(to_picture_attention, codes=False)),
        (DECODER_GRAPH, functools.partial(to_cached_attention, bfloat16=False)),
    ):
        for place in range(3):
            model, _ = load_graph(bundle, file)
            attention = next(node for node in model.graph.node if node.op_type == "Attention")
            attention.input[place] = "something else"
            with pytest.raises(BundleError, match=f"attention {attention.name} is not as qwen2vl-export"):
                lower(model)
