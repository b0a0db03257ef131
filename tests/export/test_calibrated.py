"""Quantization on calibration inputs: the NumPy forward is the model, and what it finds beats rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bench.tiny import TINY  # noqa: E402
from qwen2vl_export.checkpoint import Checkpoint  # noqa: E402
from qwen2vl_export.decoder import decoder_graph  # noqa: E402
from qwen2vl_export.errors import ExportError  # noqa: E402
from qwen2vl_export.export import export_checkpoint  # noqa: E402
from qwen2vl_export.quantize import int8, network  # noqa: E402
from qwen2vl_export.quantize.calibration import SHIPPED, load_calibration  # noqa: E402
from qwen2vl_export.quantize.network import Sequences, bounds, float_linear  # noqa: E402
from qwen2vl_export.quantize.parameters import Parameters  # noqa: E402
from qwen2vl_export.vision import vision_graph  # noqa: E402
from qwen2vl_rt import _core  # noqa: E402
from qwen2vl_rt.bundle import DECODER_GRAPH, PREFILL_GRAPH, VISION_GRAPH, Bundle  # noqa: E402
from qwen2vl_rt.errors import InputError  # noqa: E402
from tests.support.portable_graphs import PortableDecoder, PortableVision  # noqa: E402
from tests.support.random_model import random_model, save_checkpoint  # noqa: E402


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- the forward in NumPy -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    model = random_model(5, heads=4, kv_heads=2)
    return model, Checkpoint.open(save_checkpoint(model, tmp_path_factory.mktemp("reference") / "checkpoint"))


def test_vision_tower_is_the_references(reference):
    model, checkpoint = reference
    g = checkpoint.geometry.vision
    parameters = Parameters(
        checkpoint, vision_graph(g, checkpoint.geometry.decoder.hidden_size, "fp32").weights
    )
    grids = [(4, 6), (8, 4)]  # two pictures side by side
    patches = np.random.default_rng(1).standard_normal((56, g.patch_values), dtype=np.float32)
    tables = [_core.vision_rope_table(h, w, g.head_dim, g.merge_size, g.rope_theta) for h, w in grids]
    cos, sin = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    at, linear = Sequences(bounds([24, 32]), cos, sin), float_linear(parameters)
    x = parameters.product("patch_embedding", patches)
    for block in range(g.depth):
        x = network.vision_block(x, block, g, parameters, at, linear)
    found = network.vision_merger(x, g, parameters, linear)
    with torch.no_grad():
        grid = torch.tensor([[1, h, w] for h, w in grids])
        expected = model.model.visual(torch.from_numpy(patches), grid_thw=grid).numpy()
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_decoder_is_the_references(reference):
    model, checkpoint = reference
    g = checkpoint.geometry.decoder
    parameters = Parameters(checkpoint, decoder_graph(g, "fp32").weights)
    rng = np.random.default_rng(2)
    lengths = (9, 14)
    inputs = [rng.standard_normal((n, g.hidden_size), dtype=np.float32) for n in lengths]
    positions = [np.sort(rng.integers(0, 40, (3, n)), axis=1) for n in lengths]
    tables = [_core.rope_table(p, g.head_dim, g.rope_theta, list(g.mrope_section)) for p in positions]
    cos, sin = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    at, x = Sequences(bounds(lengths), cos, sin), np.concatenate(inputs)
    for layer in range(g.layers):
        x = network.decoder_layer(x, layer, g, parameters, at, float_linear(parameters))
    found = network.rms_norm(x, parameters.vector("head.norm.weight"), g.rms_norm_eps)
    for span, embeddings, position in zip(at.spans(), inputs, positions, strict=True):
        with torch.no_grad():
            expected = model.model.language_model(
                inputs_embeds=torch.from_numpy(embeddings)[None],
                position_ids=torch.from_numpy(position)[:, None],
            ).last_hidden_state[0]
        assert np.abs(found[span] - expected.numpy()).max() < 2e-5 * np.abs(expected.numpy()).max()


# --- whole bundles ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    """A small part of the shipped set."""
    folder = tmp_path_factory.mktemp("calibration")
    lines = (SHIPPED / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "conversations.jsonl").write_text("\n".join(lines[:24:2]), encoding="utf-8")
    (folder / "pictures").symlink_to(SHIPPED / "pictures")
    return folder


@pytest.fixture(scope="module")
def bundles(conversations, tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    found = {"fp32": export_checkpoint(TINY, folder / "fp32")}
    for precision in ("int8", "int4", "int4-int8"):
        found[precision] = export_checkpoint(TINY, folder / precision, precision, calibration=conversations)
    found["nearest"] = export_checkpoint(TINY, folder / "nearest", "int4")
    return found


@pytest.fixture(scope="module")
def held_out(bundles) -> dict[str, np.ndarray]:
    """A conversation of the shipped set that was not calibrated on, through float32: inputs and results."""
    checkpoint = Checkpoint.open(TINY)
    calibration = load_calibration(SHIPPED, checkpoint)
    prompt = calibration.prompts[7]
    visual = prompt.visuals[0]
    _, h, w = visual.grid_thw
    embeddings = PortableVision(bundles["fp32"])(visual.patches, h, w)
    ids, special = prompt.token_ids, checkpoint.geometry.special_ids
    positions, _ = _core.mrope_positions(ids, prompt.grids, special.image_pad, special.video_pad, 2)
    decoder = PortableDecoder(bundles["fp32"], 1, len(ids))
    x = decoder.embedding[ids].copy()
    x[ids == special.image_pad] = embeddings[0]
    found = {"patches": visual.patches, "grid": (h, w), "visual": embeddings, "x": x, "positions": positions}
    found["logits"] = logits(bundles["fp32"], found, DECODER_GRAPH)
    return found


def logits(bundle: Bundle, inputs: dict[str, np.ndarray], graph: str) -> np.ndarray:
    """Logits [1, T, V] of all tokens of the held-out conversation."""
    tokens = len(inputs["x"])
    decoder = PortableDecoder(bundle, 1, tokens, graph)
    return decoder(inputs["x"][None], inputs["positions"][:, None], [0], np.arange(tokens)[None])


def test_four_bits_beat_rounding_to_nearest_on_inputs_not_seen(bundles, held_out):
    errors = {
        name: distance(logits(bundles[name], held_out, DECODER_GRAPH), held_out["logits"])
        for name in ("int4", "int4-int8", "nearest")
    }
    assert errors["int4"] == errors["int4-int8"] < 0.6 * errors["nearest"]


@pytest.mark.parametrize(("precision", "graph"), [("int8", DECODER_GRAPH), ("int4-int8", PREFILL_GRAPH)])
def test_eight_bits_are_near_float32(bundles, held_out, precision, graph):
    assert distance(logits(bundles[precision], held_out, graph), held_out["logits"]) < 0.03


def test_the_vision_tower_is_near_float32(bundles, held_out):
    found = PortableVision(bundles["int8"])(held_out["patches"], *held_out["grid"])
    assert distance(found, held_out["visual"]) < 0.03


@pytest.mark.parametrize("precision", ["int8", "int4-int8"])
def test_smoothing_changes_nothing_but_rounding(precision, conversations, held_out, tmp_path, monkeypatch):
    """However strong it is: each factor divides here and multiplies there, across heads, norms and merged
    patches.
    """
    monkeypatch.setattr(int8, "STRENGTHS", (0.5,))
    bundle = export_checkpoint(TINY, tmp_path / "bundle", precision, calibration=conversations)
    graph = DECODER_GRAPH if precision == "int8" else PREFILL_GRAPH
    assert distance(logits(bundle, held_out, graph), held_out["logits"]) < 0.04
    found = PortableVision(bundle)(held_out["patches"], *held_out["grid"])
    assert distance(found, held_out["visual"]) < 0.04
    model = onnx.load(bundle.file(VISION_GRAPH))
    norm = next(t for t in model.graph.initializer if t.name == "blocks.2.mlp.norm.weight")
    plain = Checkpoint.open(TINY).tensors["visual.blocks.2.norm2.weight"].read(0, 192).astype(np.float32)
    assert distance(onnx.numpy_helper.to_array(norm), plain) > 0.01  # it did move something


def test_both_decoders_agree_on_the_cache(bundles):
    """The prompt's values are read by the other decoder: neither may scale its own."""
    values = {}
    for graph in (DECODER_GRAPH, PREFILL_GRAPH):
        model = onnx.load(bundles["int4-int8"].file(graph))
        bias = next(t for t in model.graph.initializer if t.name == "layers.0.attention.v.bias")
        values[graph] = onnx.numpy_helper.to_array(bias)
    np.testing.assert_array_equal(values[DECODER_GRAPH], values[PREFILL_GRAPH])


# --- calibration sets ---------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_chat_template_is_told_what_to_do(conversations, tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(
        TINY, copy, ignore=shutil.ignore_patterns("eval", "chat_template.json", "tokenizer_config.json")
    )
    with pytest.raises(ExportError, match="no chat template to calibrate with"):
        export_checkpoint(copy, tmp_path / "bundle", "int8", calibration=conversations)
    assert export_checkpoint(copy, tmp_path / "bundle", "int8").precision == "int8"


def test_a_checkpoint_of_newer_transformers_is_calibrated_as_well(conversations, tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(TINY, copy, ignore=shutil.ignore_patterns("eval"))
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    (copy / "preprocessor_config.json").unlink()
    expected, found = (load_calibration(conversations, Checkpoint.open(path)) for path in (TINY, copy))
    np.testing.assert_array_equal(found.patches, expected.patches)


def test_the_shipped_set_covers_pictures_videos_and_text():
    calibration = load_calibration(SHIPPED, Checkpoint.open(TINY))
    kinds = [visual.kind for prompt in calibration.prompts for visual in prompt.visuals]
    assert kinds.count("image") > 40
    assert kinds.count("video") >= 4
    assert any(not prompt.visuals for prompt in calibration.prompts)
    assert len(calibration.token_ids) == calibration.sequences.bounds[-1] == len(calibration.sequences.cos)
    assert len(calibration.patches) == calibration.pictures.bounds[-1] == len(calibration.pictures.sin)


def test_the_evaluation_is_not_in_the_shipped_set():
    def pictures(folder: Path) -> set[bytes]:
        return {file.read_bytes() for file in folder.glob("pictures/*")}

    assert not pictures(SHIPPED) & pictures(TINY / "eval")
    asked = {
        json.loads(line)["messages"][0]["content"][0].get("image")
        for line in (TINY / "eval/questions.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert len(asked) > 100


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, ExportError, "cannot be read"),
        ("", ExportError, "has no conversations"),
        ("not json", ExportError, "line 1: not a conversation"),
        ('{"talk": []}', ExportError, "line 1: not a conversation"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', ExportError, "has no pictures"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image", "image": "none.png"}]}]}',
            InputError,
            "none.png",
        ),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_before_anything_is_written(text, error, message, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    if text is not None:
        (folder / "conversations.jsonl").write_text(text)
    with pytest.raises(error, match=message):
        export_checkpoint(TINY, tmp_path / "bundle", "int4", calibration=folder)
    assert not list(tmp_path.glob("*bundle*"))
