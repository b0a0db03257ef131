"""Geometry from config.json: the published files, the newer nested form, and what is refused."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

from qwen2vl_rt.errors import BundleError, CheckpointError
from qwen2vl_rt.geometry import Geometry

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from random_checkpoint import GENERATION_CONFIG, published_config, tensor_shapes


def nested(config: dict, rope_key: str = "rope_scaling") -> dict:
    """The same model as newer transformers write it."""
    config = copy.deepcopy(config)
    top = {"model_type", "architectures", "vision_config", "tie_word_embeddings"}
    top |= {"image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"}
    text = {name: value for name, value in config.items() if name not in top}
    rope = text.pop("rope_scaling")
    text[rope_key] = {"rope_type": "default", "mrope_section": rope["mrope_section"]}
    if rope_key == "rope_parameters":
        text[rope_key]["rope_theta"] = text.pop("rope_theta")
    config["vision_config"]["in_channels"] = config["vision_config"].pop("in_chans")
    return {name: value for name, value in config.items() if name in top} | {"text_config": text}


@pytest.mark.parametrize(
    ("size", "heads", "kv_heads", "tied", "billions"),
    [("2b", 12, 2, True, 2.209), ("7b", 28, 4, False, 8.291), ("72b", 64, 8, False, 73.405)],
)
def test_published_sizes(size, heads, kv_heads, tied, billions):
    geometry = Geometry.from_config(published_config(size), GENERATION_CONFIG)
    decoder, vision = geometry.decoder, geometry.vision
    assert (decoder.heads, decoder.kv_heads, decoder.head_dim) == (heads, kv_heads, 128)
    assert decoder.tied_embedding is tied
    assert decoder.mrope_section == (16, 24, 24)
    assert (vision.head_dim, vision.mlp_size, vision.patch_values) == (80, 5120, 1176)
    assert geometry.special_ids.eos == (151645, 151643)
    assert geometry.special_ids.pad == 151643
    numbers = 0
    for shape in tensor_shapes(geometry).values():
        count = 1
        for n in shape:
            count *= n
        numbers += count
    assert numbers / 1e9 == pytest.approx(billions, abs=0.0006)  # the parameter counts on the hub


@pytest.mark.parametrize("rope_key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("size", ["2b", "72b"])
def test_nested_form_means_the_same(size, rope_key):
    flat = published_config(size)
    assert Geometry.from_config(nested(flat, rope_key)) == Geometry.from_config(flat)


def test_text_config_decides_about_tying():
    config = nested(published_config("2b"))
    config["text_config"]["tie_word_embeddings"] = False
    assert not Geometry.from_config(config).decoder.tied_embedding


def test_json_round_trip():
    geometry = Geometry.from_config(published_config("7b"))
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


OTHERS = {
    "Qwen2.5-VL": {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]},
    "Qwen3-VL": {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]},
    "Qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "Llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "no type": {"model_type": None},
    "a head of another kind": {"architectures": ["Qwen2VLForSequenceClassification"]},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_other_architectures_are_refused(changes):
    with pytest.raises(CheckpointError) as caught:
        Geometry.from_config(published_config("2b") | changes, where="somewhere/config.json")
    assert "somewhere/config.json: not a Qwen2-VL checkpoint" in str(caught.value)
    for value in changes.values():
        assert repr(value) in str(caught.value)


IMPOSSIBLE = {
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "rope type": ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "yarn"),
    "no sections": ({"rope_scaling": {"type": "mrope"}}, "mrope_section is missing"),
    "sections": ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "[16, 24, 25]"),
    "two sections": ({"rope_scaling": {"type": "mrope", "mrope_section": [32, 32]}}, "[32, 32]"),
    "heads": ({"num_attention_heads": 13}, "13 heads"),
    "kv heads": ({"num_key_value_heads": 5}, "5 key/value heads"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "text for a number": ({"hidden_size": "1536"}, "'1536'"),
    "true for a number": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "huge": ({"vocab_size": 10**30}, "vocab_size"),
    "missing": ({"intermediate_size": None}, "intermediate_size is missing"),
    "no vision": ({"vision_config": None}, "vision_config is missing"),
    "vision width": ({"vision_config": {"hidden_size": 3584}}, "3584"),
    "vision heads": ({"vision_config": {"num_heads": 7}}, "7 heads"),
    "special id": ({"image_token_id": 151936}, "image_pad = 151936"),
    "eos": ({"eos_token_id": "im_end"}, "eos_token_id"),
}


@pytest.mark.parametrize(("changes", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_configs_are_refused(changes, words):
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        Geometry.from_config(published_config("2b") | changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [None, [], 3, "x", {}, {"decoder": {}}])
def test_damaged_json_is_refused(value):
    with pytest.raises(BundleError, match="geometry"):
        Geometry.from_json(value)
