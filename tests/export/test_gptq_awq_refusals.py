"""Quantized checkpoints that are damaged, or stored in another way, are refused by name, without a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.quantization_config import QuantizationConfig
from qwen2vl_rt.bundle import DECODER_GRAPH
from qwen2vl_rt.errors import CheckpointError
from qwen2vl_rt.weights import load_graph
from tests.support.quantized_checkpoint import (
    AWQ,
    GPTQ_ASYMMETRIC,
    GPTQ_INT4,
    GPTQ_INT8,
    Layout,
    QuantizedCheckpoint,
    save_quantized,
)
from tests.support.random_model import random_model

UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.0.mlp.down_proj"
DOWN_HERE = "layers.0.mlp.down.weight"  # the graph's name of it


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Checkpoints by layout, written when first asked for."""
    written: dict[Layout, QuantizedCheckpoint] = {}

    def of(layout: Layout) -> QuantizedCheckpoint:
        if layout not in written:
            model = random_model(
                32, hidden_size=128, mrope_section=(4, 6, 6), mlp_size=256, layers=1, vision_depth=1
            )
            written[layout] = save_quantized(model, tmp_path_factory.mktemp("pristine"), layout)
        return written[layout]

    return of


def refused(checkpoint: QuantizedCheckpoint, words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint.path, checkpoint.path.parent / "bundle")
    for word in [*words, str(checkpoint.path)]:
        assert word in str(caught.value)
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint"]


def configure(checkpoint: QuantizedCheckpoint, change) -> None:
    """Write config.json again after `change(config)`."""
    file = checkpoint.path / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def without(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


def changed(name, change):
    """Let `change` work on a copy of a tensor."""

    def apply(tensors):
        tensors[name] = tensors[name].copy()
        change(tensors[name])

    return apply


def resized(name, **sizes):
    """Drop a tensor's last rows or columns."""
    rows, columns = sizes.get("rows"), sizes.get("columns")
    return lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name][:rows, :columns])})


def act_order(tensors):
    tensors[f"{UP}.g_idx"] = np.random.default_rng(1).permutation(tensors[f"{UP}.g_idx"])


def set_item(place, value):
    def change(values):
        values[place] = value

    return change


DAMAGES = {
    "qweight missing": (GPTQ_INT4, without(f"{UP}.qweight"), [UP, "qweight is missing"]),
    "qzeros missing": (GPTQ_INT4, without(f"{UP}.qzeros"), [UP, "qzeros is missing"]),
    "scales missing": (AWQ, without(f"{DOWN}.scales"), [DOWN, "scales is missing"]),
    "bias missing": (
        GPTQ_INT4,
        without("model.layers.0.self_attn.q_proj.bias"),
        ["q_proj.bias", "1 tensor is missing"],
    ),
    "layer missing": (
        AWQ,
        lambda tensors: [tensors.pop(f"{UP}.{part}") for part in ("qweight", "qzeros", "scales")],
        [f"{UP}.weight", "missing"],
    ),
    "layer that no graph takes": (
        AWQ,
        lambda tensors: tensors.update(
            {f"model.layers.1.mlp.up_proj.{p}": tensors[f"{UP}.{p}"] for p in ("qweight", "qzeros", "scales")}
        ),
        ["model.layers.1.mlp.up_proj", "not part of"],
    ),
    "weight beside its codes": (
        GPTQ_INT4,
        put(f"{UP}.weight", np.ones((256, 128), np.float16)),
        [UP, "both a weight and quantized parts"],
    ),
    "fewer inputs": (
        GPTQ_INT4,
        resized(f"{UP}.qweight", rows=-1),
        [f"{UP}.qweight", "[15, 256]", "[16, 256]"],
    ),
    "fewer outputs": (AWQ, resized(f"{UP}.qweight", columns=-1), ["[128, 31]", "[128, 32]"]),
    "fewer zero points": (GPTQ_INT8, resized(f"{UP}.qzeros", columns=-1), [f"{UP}.qzeros", "[1, 63]"]),
    "fewer groups": (AWQ, resized(f"{DOWN}.scales", rows=-1), [f"{DOWN}.scales", "[1, 128]", "[2, 128]"]),
    "floating-point codes": (
        GPTQ_INT4,
        put(f"{UP}.qweight", np.ones((16, 256), np.float32)),
        [f"{UP}.qweight", "F32", "I32"],
    ),
    "integer scales": (
        GPTQ_INT4,
        put(f"{UP}.scales", np.ones((1, 256), np.int16)),
        ["up_proj.scales", "I16"],
    ),
    "an infinite scale": (
        AWQ,
        changed(f"{DOWN}.scales", set_item((1, 7), np.inf)),
        [DOWN, "scales", "not finite"],
    ),
    "an order that config.json denies": (Layout(group=32), act_order, [UP, "out of order", "desc_act"]),
    "groups of other sizes": (
        Layout(group=32, act_order=True),
        changed(f"{UP}.g_idx", set_item(slice(0, 40), 1)),
        [UP, "g_idx", "groups of 32"],
    ),
    "g_idx beyond the groups of an act-order layer": (
        Layout(group=32, act_order=True),
        changed(f"{UP}.g_idx", set_item(5, 4)),
        [UP, "g_idx", "groups of 32"],
    ),
    "short g_idx": (GPTQ_INT4, put(f"{UP}.g_idx", np.zeros(64, np.int32)), [f"{UP}.g_idx", "[64]", "[128]"]),
    "g_idx beyond the groups": (GPTQ_INT4, changed(f"{UP}.g_idx", set_item(5, -1)), [UP, "g_idx"]),
    "a symmetric layer off its middle": (
        GPTQ_INT8,
        changed(f"{UP}.qzeros", set_item((0, 3), 0x7F7F807F)),
        [UP, "zero point 129", "128"],
    ),
    "a zero point beyond 4 bits": (
        GPTQ_ASYMMETRIC,
        changed(f"{UP}.qzeros", set_item((2, 3), 0x0F000000)),
        [UP, "zero point 16", "4 bits"],
    ),
    "a bias that no graph adds": (
        GPTQ_INT4,
        put(f"{UP}.bias", np.eye(1, 256, 9, np.float16)[0]),
        [f"{UP}.bias", "not part of"],
    ),
}


@pytest.mark.parametrize(("layout", "damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_layers(layout, damage, words, pristine, tmp_path):
    checkpoint = pristine(layout).copy(tmp_path / "checkpoint")
    damage(checkpoint.tensors)
    checkpoint.save()
    refused(checkpoint, words)


CONFIGS = {
    "another method": (GPTQ_INT4, {"quant_method": "bitsandbytes"}, ["quant_method 'bitsandbytes'", "gptq"]),
    "no method": (GPTQ_INT4, {"quant_method": None}, ["quant_method is missing"]),
    "3 bits": (GPTQ_INT4, {"bits": 3}, ["bits 3", "4 or 8"]),
    "AWQ of 8 bits": (AWQ, {"bits": 8}, ["bits 8", "expected 4"]),
    "other bits than stored": (GPTQ_INT4, {"bits": 8}, ["qweight", "8 bits"]),
    "groups of 48": (GPTQ_INT4, {"group_size": 48}, ["group_size 48", "multiple of 32"]),
    "one group": (GPTQ_INT4, {"group_size": -1}, ["group_size -1", "multiple of 32"]),
    "another group than stored": (GPTQ_INT4, {"group_size": 64}, ["[1, ", "[2, ", "group_size 64"]),
    "groups of 96": (GPTQ_INT4, {"group_size": 96}, ["[1, ", "[2, ", "group_size 96"]),
    "AWQ's groups of 96": (AWQ, {"group_size": 96}, ["group_size 96", "128 inputs"]),
    "marlin": (GPTQ_INT4, {"checkpoint_format": "marlin"}, ["checkpoint_format 'marlin'", "gptq_v2"]),
    "AutoGPTQ's marlin": (GPTQ_INT4, {"is_marlin_format": True}, ["marlin"]),
    "words of 8 bits": (GPTQ_INT4, {"pack_dtype": "int8"}, ["pack_dtype", "int32"]),
    "gemv": (AWQ, {"version": "gemv"}, ["version 'gemv'", "gemm"]),
    "llm-awq": (AWQ, {"backend": "llm-awq"}, ["backend 'llm-awq'"]),
    "AWQ without zero points": (AWQ, {"zero_point": False}, ["zero_point"]),
    "GPTQ read as its second format": (
        GPTQ_INT4,
        {"checkpoint_format": "gptq_v2"},
        ["zero point 7, 8 in a symmetric layer"],
    ),
    "AWQ read as GPTQ": (AWQ, {"quant_method": "gptq"}, ["qweight", "gptq, 4 bits"]),
}


@pytest.mark.parametrize(("layout", "change", "words"), CONFIGS.values(), ids=CONFIGS)
def test_config_of_another_layout(layout, change, words, pristine, tmp_path):
    checkpoint = pristine(layout).copy(tmp_path / "checkpoint")
    configure(checkpoint, lambda config: config["quantization_config"].update(change))
    refused(checkpoint, words)


def test_config_that_says_nothing(pristine, tmp_path):
    checkpoint = pristine(AWQ).copy(tmp_path / "checkpoint")
    configure(checkpoint, lambda config: config.pop("quantization_config"))
    refused(checkpoint, ["qweight", "no quantization_config"])


@pytest.mark.parametrize("layout", [GPTQ_INT4, AWQ], ids=["gptq", "awq"])
def test_what_other_tools_leave_is_accepted(layout, pristine, tmp_path):
    """Biases of 0 where the model has none, no g_idx, a matrix left in float16."""
    checkpoint = pristine(layout).copy(tmp_path / "checkpoint")
    tensors = checkpoint.tensors
    tensors[f"{UP}.bias"] = np.zeros(256, np.float16)
    tensors.pop(f"{UP}.g_idx", None)
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        tensors.pop(f"{DOWN}.{part}", None)
    tensors[f"{DOWN}.weight"] = np.ones((128, 256), np.float16)
    checkpoint.save()
    found, expected = (
        decoder(checkpoint, tmp_path / "found"),
        decoder(pristine(layout), tmp_path / "expected"),
    )
    np.testing.assert_array_equal(found.pop(DOWN_HERE), np.ones((256, 128), np.float32))
    del expected[DOWN_HERE]
    assert_same(found, expected)


def test_trivial_order_of_an_act_order_checkpoint_is_accepted(pristine, tmp_path):
    checkpoint = pristine(GPTQ_INT4).copy(tmp_path / "checkpoint")
    configure(checkpoint, lambda config: config["quantization_config"].update(desc_act=True))
    assert_same(decoder(checkpoint, tmp_path / "found"), decoder(pristine(GPTQ_INT4), tmp_path / "expected"))


def decoder(checkpoint: QuantizedCheckpoint, folder: Path) -> dict[str, np.ndarray]:
    """The weights of the decoder's float32 export."""
    return load_graph(export_checkpoint(checkpoint.path, folder), DECODER_GRAPH)[1]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


values = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
entry = values | st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=2)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), layout=st.sampled_from([GPTQ_INT4, AWQ]))
def test_any_quantization_config(data, layout):
    config = layout.quantization_config
    names = data.draw(st.lists(st.sampled_from([*config, "format", "backend", "pack_dtype"]), max_size=3))
    config |= {name: data.draw(entry) for name in names}
    found = data.draw(st.just(config) | entry)
    try:
        QuantizationConfig.from_config({"quantization_config": found}, "config.json")
    except CheckpointError as error:
        assert "config.json" in str(error)
