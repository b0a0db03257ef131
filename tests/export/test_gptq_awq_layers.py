"""Quantized layers are read code for code, and dequantized exactly, from every layout."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.decoder import decoder_graph
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.packed_layer import PackedLayer
from qwen2vl_export.quantization_config import QuantizationConfig
from qwen2vl_export.safetensors_file import read_header
from qwen2vl_rt.bundle import DECODER_GRAPH
from tests.support import quantized_checkpoint as layouts
from tests.support.quantized_checkpoint import Layer, Layout, pack, save_quantized
from tests.support.random_model import random_model

LAYOUTS = {
    "gptq-int4": layouts.GPTQ_INT4,
    "gptq-int8": layouts.GPTQ_INT8,
    "awq": layouts.AWQ,
    "gptq-asymmetric": layouts.GPTQ_ASYMMETRIC,
    "gptq-v2": layouts.GPTQ_V2,
    "gptq-v2-int8": layouts.GPTQ_V2_INT8,
    "gptq-act-order": layouts.GPTQ_ACT_ORDER,
}


def packed_layer(folder, tensors, layout: Layout) -> PackedLayer:
    """Store a layer's tensors and open them."""
    save_file({f"layer.{part}": values for part, values in tensors.items()}, folder / "layer.safetensors")
    config = QuantizationConfig.from_config({"quantization_config": layout.quantization_config}, "config")
    parts = read_header(folder / "layer.safetensors")
    return PackedLayer("layer", {name.removeprefix("layer."): part for name, part in parts.items()}, config)


def random_layer(layout: Layout, outputs: int, inputs: int) -> Layer:
    """Any codes, any zero points that the layout can hold, scales over float16's whole range."""
    rng = np.random.default_rng(outputs + inputs)
    largest, groups = 2**layout.bits, layouts.groups_of(inputs, layout)
    shape = (outputs, groups.max() + 1)
    first_format = layout.method == "gptq" and layout.checkpoint_format == "gptq"
    zeros = rng.integers(int(first_format), largest, shape)
    return Layer(
        rng.integers(0, largest, (outputs, inputs)),
        np.exp2(rng.uniform(-24, 15, shape)).astype(np.float16),
        np.full(shape, largest // 2) if layout.symmetric else zeros,
        groups,
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("outputs", "inputs"), [(24, 256), (200, 128), (8, 640), (16, 352)])
def test_every_code_scale_and_zero_point(layout, outputs, inputs, tmp_path):
    if layout.method == "awq" and inputs % layout.group:
        pytest.skip("AWQ's groups fill the inputs")
    known = random_layer(layout, outputs, inputs)
    layer = packed_layer(tmp_path, pack(known, layout), layout)
    layer.check((outputs, inputs))
    found = layer.read(0, outputs)
    assert found.group == layout.group
    for ours, theirs, dtype in (
        (found.codes, known.codes, np.uint8),
        (found.scales, known.scales, np.float32),
        (found.zero_points, known.zeros, np.uint8),
        (found.dequantized(), known.weight, np.float32),
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == dtype and ours.flags.c_contiguous
    assert layer.in_order == (not layout.act_order or inputs <= layout.group)
    for start, stop in ((0, 1), (5, 77), (inputs - 40, inputs)):
        np.testing.assert_array_equal(found.dequantized(start, stop), known.weight[:, start:stop])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_rows_and_any_block(layout, tmp_path, monkeypatch):
    """Rows that begin and end inside a word, in blocks that end anywhere."""
    known = random_layer(layout, 40, 256)
    layer = packed_layer(tmp_path, pack(known, layout), layout)
    for words in (1, 37, 2**14):
        monkeypatch.setattr("qwen2vl_export.packed_layer._BLOCK_WORDS", words)
        for start, stop in ((0, 40), (0, 1), (39, 40), (3, 17), (8, 16), (5, 40), (7, 7)):
            found = layer.read(start, stop)
            np.testing.assert_array_equal(found.dequantized(), known.weight[start:stop])
            np.testing.assert_array_equal(found.zero_points, known.zeros[start:stop])


def test_words_as_documented(tmp_path):
    """Words spelled out: GPTQ's 0x76543210 is eight inputs in order, AWQ's 0x75316420 eight outputs."""
    count = np.arange(8)
    layout = Layout(group=32)
    word = np.array([[0x76543210]] * 4, np.int32).repeat(8, axis=1)
    tensors = {
        "qweight": word,  # [K / 8, N] = [4, 8]
        "qzeros": np.array([[0x77777777]], np.int32),
        "scales": np.full((1, 8), 0.5, np.float16),
        "g_idx": np.zeros(32, np.int32),
    }
    found = packed_layer(tmp_path, tensors, layout).read(0, 8)
    np.testing.assert_array_equal(found.codes, np.tile(count, (8, 4)))
    np.testing.assert_array_equal(found.zero_points, np.full((8, 1), 8))
    np.testing.assert_array_equal(found.dequantized()[0, :8], (count - 8) / 2)

    tensors = {
        "qweight": np.full((32, 1), 0x75316420, np.int32),
        "qzeros": np.array([[0x00002222]], np.int32),  # of the outputs 0, 2, 4, 6
        "scales": np.ones((1, 8), np.float16),
    }
    found = packed_layer(tmp_path, tensors, Layout("awq", group=32)).read(0, 8)
    np.testing.assert_array_equal(found.codes, np.tile(count[:, None], (1, 32)))
    np.testing.assert_array_equal(found.zero_points[:, 0], [2, 0] * 4)


def small_model():
    return random_model(
        31, hidden_size=128, mrope_section=(4, 6, 6), mlp_size=256, layers=1, vision_depth=1, tied=True
    )


@pytest.fixture(scope="module", params=["gptq-int4", "gptq-int8", "gptq-act-order", "awq"])
def written(request, tmp_path_factory):
    return save_quantized(small_model(), tmp_path_factory.mktemp("quantized"), LAYOUTS[request.param])


def test_checkpoint_gives_codes_or_numbers(written):
    checkpoint = Checkpoint.open(written.path)
    weights = decoder_graph(checkpoint.geometry.decoder, "fp32").weights
    assert sum(weight.source in written.layers for weight in weights) == 7
    for weight in weights:
        found = checkpoint.quantized(weight.source)
        rows = checkpoint.read_rows(weight, 1, weight.rows)
        if weight.source in written.layers:
            known = written.layers[weight.source]
            np.testing.assert_array_equal(found.codes, known.codes)
            np.testing.assert_array_equal(found.zero_points, known.zeros)
            np.testing.assert_array_equal(rows, known.weight[1:])
        else:
            assert found is None
            stored = written.tensors[weight.source]
            np.testing.assert_array_equal(rows, stored.reshape(weight.rows, -1)[1:])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_export_in_floating_point(written, precision, tmp_path):
    bundle = export_checkpoint(written.path, tmp_path / "bundle", precision)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    initializers = {t.name: t for t in onnx.load(bundle.file(DECODER_GRAPH)).graph.initializer}
    for ours, theirs in {
        "layers.0.attention.q": "model.layers.0.self_attn.q_proj",
        "layers.0.attention.v": "model.layers.0.self_attn.v_proj",
        "layers.0.mlp.down": "model.layers.0.mlp.down_proj",
    }.items():
        stored = onnx.numpy_helper.to_array(initializers[f"{ours}.weight"], str(bundle.path))
        expected = torch.from_numpy(written.layers[f"{theirs}.weight"].weight).to(wanted).float().numpy()
        np.testing.assert_array_equal(stored.astype(np.float32), expected.T)
