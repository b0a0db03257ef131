"""Every form of the graphs for TensorRT means what the portable graph means.

Each is run in ONNX Runtime, operator by operator. What TensorRT's parser drops and `tensorrt.network` sets
again on the parsed network ("lengths") is the portable graph itself here.
"""

from __future__ import annotations

import numpy as np
import pytest

from qwen2vl_rt.lowering.tensorrt import Form, lower_decoder, lower_vision
from tests.support.graph_feeds import decoder_feed, load, portable, run, vision_feed

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
    model, weights = load(bundle, "decoder.onnx")
    lower_decoder(model, weights, bundle.geometry, Form("fp32", attention), CAPACITY)
    assert_same_step(run(model, weights, feed), expected, past, tokens, 1e-5)


@pytest.mark.parametrize("attention", ["lengths", "primitives"])
@pytest.mark.parametrize(("pictures", "patches"), [(1, 16), (3, 24)])
def test_vision(bundles, pictures, patches, attention):
    bundle = bundles["fp32"]
    feed = vision_feed(bundle, pictures, patches)
    model, weights = load(bundle, "vision.onnx")
    lower_vision(model, weights, bundle.geometry, Form("fp32", attention))
    expected = portable(bundle, "vision.onnx", feed)["visual_embeddings"]
    assert_close(run(model, weights, feed)["visual_embeddings"], expected, 1e-5)
