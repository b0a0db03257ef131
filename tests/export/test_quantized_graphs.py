"""Graphs of int8, int4 and int4-int8 bundles: operators, what lies where, results near float32's."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.numpy_helper import to_array
from onnx.reference import ReferenceEvaluator

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.bundle import DECODER_GRAPH, EMBEDDING, PREFILL_GRAPH, VISION_GRAPH, Bundle
from tests.support.portable_graphs import PortableDecoder, PortableVision, vision_rope_tables

QUANTIZED = ("int8", "int4", "int4-int8")
DECODER_LAYERS = (
    *(f"attention.{name}" for name in ("q", "k", "v", "o")),
    *(f"mlp.{name}" for name in ("gate", "up", "down")),
)
VISION_LAYERS = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Wider than a block of 128, and not by whole blocks."""
    from tests.support.random_model import random_model, save_checkpoint

    model = random_model(8, hidden_size=160, heads=4, mrope_section=(4, 8, 8), mlp_size=320, tied=True)
    return save_checkpoint(model, tmp_path_factory.mktemp("wide") / "checkpoint")


@pytest.fixture(scope="module")
def bundles(checkpoint, tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("quantized")
    return {p: export_checkpoint(checkpoint, folder / p, p) for p in ("fp32", *QUANTIZED)}


def graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    names = [DECODER_GRAPH, VISION_GRAPH, *([PREFILL_GRAPH] if PREFILL_GRAPH in bundle.files else [])]
    return {name: onnx.load(bundle.file(name), load_external_data=False) for name in names}


def table(bundle: Bundle) -> np.ndarray:
    """The embedding table from embedding.bin alone, as the runtime reads it."""
    g = bundle.geometry.decoder
    raw, blocks = bundle.file(EMBEDDING).read_bytes(), -(-g.hidden_size // 128)
    if bundle.precision == "fp32":
        return np.frombuffer(raw, np.float32).reshape(g.vocab_size, g.hidden_size)
    codes_end = g.vocab_size * g.hidden_size
    scales_start = -(-codes_end // 4096) * 4096
    scales_end = scales_start + g.vocab_size * blocks * 4
    zeros_start = -(-scales_end // 4096) * 4096
    assert len(raw) == zeros_start + g.vocab_size * blocks
    codes = np.frombuffer(raw, np.uint8, codes_end).reshape(g.vocab_size, g.hidden_size)
    scales = np.frombuffer(raw, np.float32, g.vocab_size * blocks, scales_start).reshape(-1, blocks)
    assert set(raw[zeros_start:]) == {128}
    return (codes.astype(np.float32) - 128) * np.repeat(scales, 128, axis=1)[:, : g.hidden_size]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_checked_standard_operators_with_every_shape_known(bundles, precision):
    for name, model in graphs(bundles[precision]).items():
        onnx.checker.check_model(str(bundles[precision].file(name)), full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        known = {v.name for v in [*inferred.graph.value_info, *inferred.graph.output]}
        assert known >= {output for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_inputs_and_outputs_are_those_of_float32(bundles, precision):
    plain = graphs(bundles["fp32"])
    for name, model in graphs(bundles[precision]).items():
        expected = plain[DECODER_GRAPH if name == PREFILL_GRAPH else name].graph
        assert list(model.graph.input) == list(expected.input)
        assert list(model.graph.output) == list(expected.output)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_which_matrices_have_which_form(bundles):
    for precision, decoder_type in (
        ("int8", TensorProto.INT8),
        ("int4", TensorProto.UINT4),
        ("int4-int8", TensorProto.UINT4),
    ):
        models = graphs(bundles[precision])
        last_type = TensorProto.UINT8 if decoder_type == TensorProto.UINT4 else decoder_type
        for layer in DECODER_LAYERS:
            assert kinds(models[DECODER_GRAPH])[f"layers.0.{layer}.weight"] == decoder_type
            assert kinds(models[DECODER_GRAPH])[f"layers.1.{layer}.weight"] == last_type
            if precision == "int4-int8":
                assert kinds(models[PREFILL_GRAPH])[f"layers.1.{layer}.weight"] == TensorProto.INT8
        vision = kinds(models[VISION_GRAPH])
        assert vision["patch_embedding.weight"] == TensorProto.FLOAT
        for layer in VISION_LAYERS:
            assert vision[f"blocks.1.{layer}.weight"] == TensorProto.INT8
        assert vision["merger.fc1.weight"] == TensorProto.INT8
        assert vision["visual_embeddings.weight"] == TensorProto.UINT8


@pytest.mark.parametrize("precision", QUANTIZED)
def test_shapes_of_codes_scales_and_zero_points(bundles, precision):
    g = bundles[precision].geometry.decoder
    for model in graphs(bundles[precision]).values():
        dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        for name, kind in kinds(model).items():
            if kind in (TensorProto.UINT4, TensorProto.UINT8) and name.endswith(".weight"):
                outputs, inputs = dims[name]
                assert dims[f"{name}.scale"] == dims[f"{name}.zero_point"] == [outputs, -(-inputs // 128)]
            elif kind == TensorProto.INT8:
                assert dims[f"{name}.scale"] == [dims[name][1]]
        if "lm_head.weight" in dims:
            assert dims["lm_head.weight"] == [g.vocab_size, g.hidden_size]
            assert dims["lm_head.weight.scale"] == [g.vocab_size, 2]


def test_an_input_is_quantized_once_for_all_layers_that_take_it(bundles):
    model = graphs(bundles["int8"])[DECODER_GRAPH]
    casts = [n.name for n in model.graph.node if n.name.endswith(".quantized")]
    assert sorted(n for n in casts if n.startswith("layers.0")) == [
        "layers.0.attention.merged.quantized",
        "layers.0.attention.norm.quantized",
        "layers.0.mlp.norm.quantized",
        "layers.0.mlp.product.quantized",
    ]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_tied_table_is_stored_once(bundles, precision):
    for name, model in graphs(bundles[precision]).items():
        if name != VISION_GRAPH:
            tensors = [t for t in model.graph.initializer if t.name.startswith("lm_head.")]
            assert {e.value for t in tensors for e in t.external_data if e.key == "location"} == {EMBEDDING}
            codes, scale, zero = (to_array(t, str(bundles[precision].path)) for t in tensors)
            codes, zero = codes.astype(np.float32), zero.astype(np.float32)
            found = (codes - zero.repeat(128, 1)[:, :160]) * scale.repeat(128, 1)[:, :160]
            np.testing.assert_array_equal(found, table(bundles[precision]))


def test_an_untied_head_is_stored_once_for_both_decoders(pristine_checkpoint, tmp_path):
    bundle = export_checkpoint(pristine_checkpoint, tmp_path / "bundle", "int4-int8")
    decoder, prefill = (
        [
            str(t.external_data)
            for t in graphs(bundle)[name].graph.initializer
            if t.name.startswith("lm_head.")
        ]
        for name in (DECODER_GRAPH, PREFILL_GRAPH)
    )
    assert decoder == prefill
    assert len(decoder) == 3
    assert all("decoder.weights" in place for place in decoder)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_eight_bit_table_is_near_the_checkpoint(bundles, precision):
    exact = table(bundles["fp32"])
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert (np.abs(table(bundles[precision]) - exact) <= 0.5003 * step).all()


def decoder_feed(bundle: Bundle, tokens: int) -> dict[str, np.ndarray]:
    g, rng = bundle.geometry.decoder, np.random.default_rng(tokens)
    angles = rng.uniform(0, 6, (1, tokens, g.head_dim // 2))
    cache = np.zeros((1, g.kv_heads, 24, g.head_dim), np.float32)
    return {
        "inputs_embeds": rng.standard_normal((1, tokens, g.hidden_size), dtype=np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "past_length": np.array([0]),
        "logit_rows": np.arange(tokens)[None],
        **{f"past_{kind}.{i}": cache for i in range(g.layers) for kind in "kv"},
    }


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_same_but_for_roundings(apart: list[float]) -> None:
    """Two engines' distances for several inputs: an activation's rounding to int8 falls the other way now and
    then, which all that follows shows.
    """
    assert max(apart) < 0.03
    assert sorted(apart)[1] < 1e-5, apart


@pytest.mark.parametrize(
    ("precision", "graph", "tolerance"),
    [
        ("int8", DECODER_GRAPH, 0.06),
        ("int4", DECODER_GRAPH, 0.45),
        ("int4-int8", DECODER_GRAPH, 0.45),
        ("int4-int8", PREFILL_GRAPH, 0.06),
    ],
)
def test_decoder_is_near_float32_on_two_engines(bundles, precision, graph, tolerance):
    exact = PortableDecoder(bundles["fp32"], 1, 24).session
    quantized = PortableDecoder(bundles[precision], 1, 24, graph).session
    reference = ReferenceEvaluator(str(bundles[precision].file(graph)))
    apart = []
    for tokens in range(8, 13):
        feed = decoder_feed(bundles["fp32"], tokens)
        found = quantized.run(["logits"], feed)[0]
        assert distance(found, exact.run(["logits"], feed)[0]) < tolerance
        apart.append(distance(found, reference.run(["logits"], feed)[0]))
    assert_same_but_for_roundings(apart)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_vision_tower_is_near_float32_on_two_engines(bundles, precision):
    # A small picture: the fewer activations, the fewer roundings that fall the other way.
    tables = vision_rope_tables(2, 4, bundles["fp32"].geometry.vision.head_dim)
    cos, sin = (table[None] for table in tables)
    exact, quantized = (PortableVision(bundles[name]) for name in ("fp32", precision))
    reference = ReferenceEvaluator(str(bundles[precision].file(VISION_GRAPH)))
    apart = []
    for seed in range(5):
        patches = np.random.default_rng(seed).standard_normal((1, 8, 1176), dtype=np.float32)
        found = quantized(patches, 2, 4)
        assert distance(found, exact(patches, 2, 4)) < 0.03
        feed = {"patches": patches, "cos": cos, "sin": sin}
        apart.append(distance(found, reference.run(None, feed)[0]))
    assert_same_but_for_roundings(apart)


def test_four_bit_weights_that_fit_are_kept_exactly(checkpoint, tmp_path):
    """A checkpoint whose matrices are on the grid already: the int4 graph is the float32 graph."""
    import safetensors.numpy

    source = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    rng = np.random.default_rng(4)
    for name, value in source.items():
        if "visual" in name or value.ndim != 2:
            continue
        bits = 8 if "embed_tokens" in name or ".layers.1." in name else 4
        low, high = (-127, 128) if bits == 8 else (-8, 8)
        steps = rng.integers(low, high, value.shape)
        steps[:, ::128] = low  # the peak of every block, so that its scale is found again
        scales = rng.uniform(0.001, 0.02, (value.shape[0], -(-value.shape[1] // 128))).astype(np.float32)
        scales = scales.astype(ml_dtypes.bfloat16).astype(np.float32)  # divided by 127 and back without loss
        source[name] = (steps * scales.repeat(128, 1)[:, : value.shape[1]]).astype(np.float32)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    safetensors.numpy.save_file(source, folder / "model.safetensors", {"format": "pt"})
    exact = export_checkpoint(folder, tmp_path / "fp32")
    int4 = export_checkpoint(folder, tmp_path / "int4", "int4")
    np.testing.assert_allclose(table(int4), table(exact), rtol=2e-7)
    feed = decoder_feed(exact, 7)
    expected = PortableDecoder(exact, 1, 24).session.run(["logits"], feed)[0]
    found = PortableDecoder(int4, 1, 24).session.run(["logits"], feed)[0]
    assert distance(found, expected) < 1e-5
