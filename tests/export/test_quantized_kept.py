"""4-bit layers of GPTQ and AWQ checkpoints go into int4 bundles bit for bit; others are quantized anew, near
what they stood for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

pytest.importorskip("torch")
pytest.importorskip("transformers")

from bench.tiny import TINY
from qwen2vl_export.decoder import decoder_graph
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.quantize.calibration import SHIPPED
from qwen2vl_rt.bundle import DECODER_GRAPH, Bundle
from tests.support import quantized_checkpoint as layouts
from tests.support.quantized_checkpoint import Layout, QuantizedCheckpoint, save_quantized
from tests.support.random_model import of_the_tiny_tokenizer, random_model


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    lines = (SHIPPED / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "conversations.jsonl").write_text("\n".join(lines[:6]), encoding="utf-8")
    (folder / "pictures").symlink_to(SHIPPED / "pictures")
    return folder


KEPT = {
    "gptq": (layouts.GPTQ_INT4, 256),
    "gptq whose last group is short": (layouts.GPTQ_INT4, 320),
    "gptq with zero points": (Layout(symmetric=False), 320),
    "gptq's second format": (Layout(symmetric=False, checkpoint_format="gptq_v2"), 256),
    "awq": (layouts.AWQ, 256),
}


def written(layout: Layout, mlp_size: int, folder: Path) -> QuantizedCheckpoint:
    model = random_model(
        4,
        hidden_size=128,
        mlp_size=mlp_size,
        mrope_section=(4, 4, 8),
        tied=True,
        **of_the_tiny_tokenizer(),
    )
    return save_quantized(model, folder / "checkpoint", layout, tokenizer=TINY)


@pytest.fixture(scope="module", params=KEPT.values(), ids=KEPT)
def checkpoint(request, tmp_path_factory) -> QuantizedCheckpoint:
    return written(*request.param, tmp_path_factory.mktemp("quantized"))


def stored(bundle: Bundle) -> dict[str, np.ndarray]:
    """The decoder's initializers; 4-bit ones a number a byte."""
    model = onnx.load(bundle.file(DECODER_GRAPH), load_external_data=False)
    return {t.name: to_array(t, str(bundle.path)).astype(np.float32) for t in model.graph.initializer}


def sources(bundle: Bundle) -> dict[str, str]:
    weights = decoder_graph(bundle.geometry.decoder, "int4").weights
    return {weight.name: weight.source for weight in weights}


def check_kept(bundle: Bundle, checkpoint: QuantizedCheckpoint, names: set[str]) -> None:
    found, published = stored(bundle), sources(bundle)
    kept = {name: checkpoint.layers[source] for name, source in published.items() if source in names}
    kept = {name: layer for name, layer in kept.items() if not name.endswith((".scale", ".zero_point"))}
    assert len(kept) == len(names)
    for name, layer in kept.items():
        np.testing.assert_array_equal(found[name], layer.codes)
        np.testing.assert_array_equal(found[f"{name}.scale"], layer.scales.astype(np.float32))
        np.testing.assert_array_equal(found[f"{name}.zero_point"], layer.zeros)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("precision", ["int4", "int4-int8"])
def test_every_layer_is_kept(checkpoint, precision, calibrated, conversations, tmp_path):
    bundle = export_checkpoint(
        checkpoint.path, tmp_path / "bundle", precision, calibration=conversations if calibrated else None
    )
    check_kept(bundle, checkpoint, set(checkpoint.layers))


def test_a_layer_in_floating_point_is_quantized_among_those_that_are_kept(
    checkpoint, conversations, tmp_path
):
    copy = checkpoint.copy(tmp_path / "copy")
    name = "model.layers.0.mlp.up_proj"
    for part in [part for part in copy.tensors if part.startswith(f"{name}.")]:
        del copy.tensors[part]
    matrix = np.random.default_rng(6).standard_normal(copy.layers[f"{name}.weight"].codes.shape)
    matrix = matrix.astype(np.float16)
    copy.tensors[f"{name}.weight"] = matrix
    copy.save()
    bundle = export_checkpoint(copy.path, tmp_path / "bundle", "int4", calibration=conversations)
    check_kept(bundle, copy, set(copy.layers) - {f"{name}.weight"})
    found = stored(bundle)
    codes, scales = found["layers.0.mlp.up.weight"], found["layers.0.mlp.up.weight.scale"]
    assert np.abs((codes - 8) * scales - matrix).mean() < 0.3 * np.abs(matrix).mean()


@pytest.mark.parametrize(
    "layout", [layouts.GPTQ_ACT_ORDER, layouts.GPTQ_V2], ids=["act-order", "groups of 64"]
)
def test_other_groups_are_quantized_anew(layout, tmp_path):
    known = written(layout, 256, tmp_path)
    found = stored(export_checkpoint(known.path, tmp_path / "bundle", "int4"))
    for name, layer in (
        ("layers.0.mlp.down", known.layers["model.layers.0.mlp.down_proj.weight"]),
        ("layers.1.attention.q", known.layers["model.layers.1.self_attn.q_proj.weight"]),
    ):
        scales, zeros = (found[f"{name}.weight.{part}"].repeat(128, 1) for part in ("scale", "zero_point"))
        values = (found[f"{name}.weight"] - zeros) * scales
        assert (np.abs(values - layer.weight) <= 1.004 * scales).all()  # the eighth step up is not there


def test_eight_bit_layers_are_rounded_once_more_for_a_scale_an_output(tmp_path):
    known = written(layouts.GPTQ_INT8, 256, tmp_path)
    found = stored(export_checkpoint(known.path, tmp_path / "bundle", "int8"))
    for published, name in (("mlp.down_proj", "mlp.down"), ("self_attn.v_proj", "attention.v")):
        exact = known.layers[f"model.layers.1.{published}.weight"].weight
        codes, scales = (found[f"layers.1.{name}.weight{part}"] for part in ("", ".scale"))
        assert (np.abs(codes.T * scales[:, None] - exact) <= 0.5001 * scales[:, None]).all()
