"""Checkpoint folders in every layout export alike; damaged ones are refused by name, without a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.bundle import DECODER_GRAPH, DECODER_WEIGHTS, VISION_WEIGHTS, Bundle
from qwen2vl_rt.errors import CheckpointError
from tests.support.random_model import random_model, save_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def rewrite(checkpoint: Path, change) -> None:
    """Save the weights again after `change(tensors)`."""
    tensors = load_file(checkpoint / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / WEIGHTS)


def published(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def newer(name: str) -> str:
    name = published(name)
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.") if name.startswith("model.") else name


def rename(checkpoint: Path, rule) -> None:
    def change(tensors):
        renamed = {rule(name): tensor for name, tensor in tensors.items()}
        assert len(renamed) == len(tensors)
        tensors.clear()
        tensors.update(renamed)

    rewrite(checkpoint, change)


def shard(checkpoint: Path, count: int) -> list[str]:
    """Spread the weights over `count` files with an index, as the hub does."""
    tensors = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    weight_map = {name: files[i % count] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, checkpoint / file)
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def digests(bundle: Bundle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in bundle.files.items() if not name.endswith(".json")}


LAYOUTS = {
    "published names": lambda checkpoint: rename(checkpoint, published),
    "newer names": lambda checkpoint: rename(checkpoint, newer),
    "three shards": lambda checkpoint: shard(checkpoint, 3),
    "published names in shards": lambda checkpoint: (rename(checkpoint, published), shard(checkpoint, 2)),
    "rotary buffers": lambda checkpoint: rewrite(
        checkpoint,
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
                "visual.rotary_pos_emb.inv_freq": torch.ones(4),
            }
        ),
    ),
}


@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_give_the_same_bundle(arrange, checkpoint, pristine_checkpoint, tmp_path):
    expected = export_checkpoint(pristine_checkpoint, tmp_path / "expected")
    arrange(checkpoint)
    found = export_checkpoint(checkpoint, tmp_path / "found")
    assert digests(found) == digests(expected)


@pytest.mark.parametrize("left", [True, False], ids=["shards left", "index left"])
def test_one_file_beside_an_older_index_is_what_counts(left, checkpoint, pristine_checkpoint, tmp_path):
    """Saving into a folder again leaves the index of the shards before; transformers reads the one file."""
    expected = export_checkpoint(pristine_checkpoint, tmp_path / "expected")
    rewrite(checkpoint, lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    for file in shard(checkpoint, 2):
        if not left:
            (checkpoint / file).unlink()
    (checkpoint / WEIGHTS).write_bytes((pristine_checkpoint / WEIGHTS).read_bytes())
    assert digests(export_checkpoint(checkpoint, tmp_path / "found")) == digests(expected)


def test_stored_names_are_the_published_ones_or_the_newer_ones(pristine_checkpoint):
    """The two layouts above are what they are called: neither renaming is a no-op."""
    names = list(load_file(pristine_checkpoint / WEIGHTS))
    assert {published(n) for n in names}.isdisjoint(n for n in map(newer, names) if n != "lm_head.weight")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_numbers_are_cast_like_torch(stored, precision, checkpoint, tmp_path):
    """Every pair of formats, against torch's round to nearest even, for all tensors of the bundle."""
    rewrite(checkpoint, lambda tensors: tensors.update({n: t.to(stored) for n, t in tensors.items()}))
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", precision)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    tensors = {published(name): tensor for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    graph = onnx.load(bundle.file(DECODER_GRAPH)).graph
    stored_numbers = {
        t.name: onnx.numpy_helper.to_array(t, str(bundle.path)).astype(np.float32) for t in graph.initializer
    }
    for ours, theirs in {
        "layers.0.attention.q.weight": "model.layers.0.self_attn.q_proj.weight",
        "layers.0.attention.k.bias": "model.layers.0.self_attn.k_proj.bias",
        "layers.0.mlp.down.weight": "model.layers.0.mlp.down_proj.weight",
        "head.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }.items():
        expected = tensors[theirs].to(wanted).float().numpy()
        if theirs.endswith("_proj.weight"):
            expected = expected.T
        np.testing.assert_array_equal(stored_numbers[ours], expected)


def test_values_beyond_float16_are_refused(checkpoint, tmp_path):
    def change(tensors):
        tensors["model.language_model.layers.0.mlp.down_proj.weight"][1, 2] = -70000.0

    rename(checkpoint, newer)
    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"down_proj.weight holds -70000.*bf16"):
        export_checkpoint(checkpoint, tmp_path / "bundle", "fp16")
    assert not (tmp_path / "bundle").exists()
    export_checkpoint(checkpoint, tmp_path / "bundle", "bf16")


@pytest.mark.parametrize("twin", [False, True], ids=["without lm_head", "with lm_head"])
def test_tied_table_is_stored_once(twin, tmp_path):
    checkpoint = save_checkpoint(
        random_model(22, layers=1, vision_depth=1, tied=True), tmp_path / "checkpoint"
    )
    rename(checkpoint, published)
    if twin:
        rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    table = 4 * bundle.geometry.decoder.vocab_size * bundle.geometry.decoder.hidden_size
    assert bundle.files["embedding.bin"].size == table
    graph = onnx.load(bundle.file(DECODER_GRAPH), load_external_data=False).graph
    (head,) = (tensor for tensor in graph.initializer if tensor.name == "lm_head.weight")
    assert {e.key: e.value for e in head.external_data} == {
        "location": "embedding.bin",
        "offset": "0",
        "length": str(table),
    }


def test_weights_are_aligned(pristine_checkpoint, tmp_path):
    bundle = export_checkpoint(pristine_checkpoint, tmp_path / "bundle")
    for graph in (DECODER_GRAPH, "vision.onnx"):
        end = 0
        for tensor in onnx.load(bundle.file(graph), load_external_data=False).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {e.key: e.value for e in tensor.external_data}
            assert place["location"] in (DECODER_WEIGHTS, VISION_WEIGHTS)
            offset, length = int(place["offset"]), int(place["length"])
            assert offset % (4096 if length >= 4096 else 64) == 0
            assert offset >= end
            end = offset + length
        assert end == bundle.files[place["location"]].size


def test_blocks_of_any_size_give_the_same_bytes(pristine_checkpoint, tmp_path, monkeypatch):
    expected = export_checkpoint(pristine_checkpoint, tmp_path / "expected", "bf16")
    monkeypatch.setattr("qwen2vl_export.sources.BLOCK_BYTES", 1000)
    assert digests(export_checkpoint(pristine_checkpoint, tmp_path / "found", "bf16")) == digests(expected)


# --- what is refused
# -------------------------------------------------------------------------------------------


def remove(name):
    return lambda checkpoint: rewrite(checkpoint, lambda tensors: tensors.pop(newer(name)))


def replace(name, tensor):
    return lambda checkpoint: rewrite(checkpoint, lambda tensors: tensors.update({newer(name): tensor}))


def edit_json(name, **changes):
    def change(checkpoint):
        found = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps(found | changes))

    return change


def set_config(**changes):
    return edit_json("config.json", **changes)


def truncate(name, count):
    def change(checkpoint):
        data = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(data[:-count])

    return change


def add(file, name):
    save_file({**load_file(file), name: torch.ones(2)}, file)


def shards_but(change):
    return lambda checkpoint: change(checkpoint, shard(checkpoint, 3))


def edit_index(change):
    def edit(checkpoint, files):
        index = json.loads((checkpoint / INDEX).read_text())
        change(index["weight_map"], files)
        (checkpoint / INDEX).write_text(json.dumps(index))

    return shards_but(edit)


NORM = "model.layers.0.input_layernorm.weight"
DAMAGES = {
    "missing tensor": (
        remove("model.layers.0.self_attn.k_proj.bias"),
        ["k_proj.bias", "1 tensor is missing"],
    ),
    "missing vision tensor": (remove("visual.merger.ln_q.bias"), ["visual.merger.ln_q.bias"]),
    "missing lm_head": (remove("lm_head.weight"), ["lm_head.weight", "missing"]),
    "extra tensor": (
        replace("model.layers.0.self_attn.q_norm.weight", torch.ones(16)),
        ["q_norm.weight", "not part of"],
    ),
    "extra layer": (replace("model.layers.1.mlp.up_proj.weight", torch.ones(2)), ["layers.1.mlp.up_proj"]),
    "misshapen": (replace(NORM, torch.ones(63)), [NORM.removeprefix("model."), "[63]", "[64]"]),
    "transposed": (
        replace("model.layers.0.mlp.up_proj.weight", torch.ones(64, 96)),
        ["up_proj", "[64, 96]", "[96, 64]"],
    ),
    "integers": (replace(NORM, torch.ones(64, dtype=torch.int32)), ["I32", "input_layernorm"]),
    "truncated weights": (truncate(WEIGHTS, 5), [WEIGHTS, "truncated"]),
    "only a header's start": (
        lambda checkpoint: (checkpoint / WEIGHTS).write_bytes(b"\x10\0\0"),
        [WEIGHTS, "truncated"],
    ),
    "an LFS pointer": (
        lambda checkpoint: (checkpoint / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        [WEIGHTS],
    ),
    "longer than its header": (
        lambda checkpoint: (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes() + b"12"),
        [WEIGHTS, "damaged"],
    ),
    "no weights": (lambda checkpoint: (checkpoint / WEIGHTS).unlink(), ["neither", INDEX]),
    "weights of another kind": (
        lambda checkpoint: (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin"),
        ["pytorch_model.bin"],
    ),
    "missing shard": (
        shards_but(lambda checkpoint, files: (checkpoint / files[1]).unlink()),
        ["model-00002-of-00003.safetensors", "1 of 3"],
    ),
    "truncated shard": (
        shards_but(lambda checkpoint, files: truncate(files[2], 1)(checkpoint)),
        ["model-00003-of-00003.safetensors", "truncated"],
    ),
    "tensor twice": (
        shards_but(lambda checkpoint, files: add(checkpoint / files[1], "lm_head.weight")),
        ["lm_head.weight", "is also in", "model-00001-of-00003"],
    ),
    "index outside the folder": (
        edit_index(lambda weight_map, files: weight_map.update({"lm_head.weight": "../other.safetensors"})),
        ["../other.safetensors", INDEX],
    ),
    "index of numbers": (edit_index(lambda weight_map, files: weight_map.update({"x": 3})), [INDEX]),
    "empty index": (edit_index(lambda weight_map, files: weight_map.clear()), [INDEX, "weight_map"]),
    "no config": (lambda checkpoint: (checkpoint / "config.json").unlink(), ["config.json is missing"]),
    "damaged config": (truncate("config.json", 20), ["config.json", "JSON"]),
    "binary config": (
        lambda checkpoint: (checkpoint / "config.json").write_bytes(b"\xff\xfe\0"),
        ["config.json", "JSON"],
    ),
    "no tokenizer": (lambda checkpoint: (checkpoint / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "no preprocessor": (
        lambda checkpoint: (checkpoint / "preprocessor_config.json").unlink(),
        ["preprocessor_config.json"],
    ),
    "no resizing": (
        edit_json("preprocessor_config.json", do_resize=False),
        ["preprocessor_config.json", "do_resize"],
    ),
    "another merge size": (
        edit_json("preprocessor_config.json", merge_size=1),
        ["merge_size 1", "the model 2"],
    ),
    "text for a penalty": (
        edit_json("generation_config.json", repetition_penalty="1.05"),
        ["generation_config.json", "repetition_penalty"],
    ),
    "no usable tokenizer": (
        lambda checkpoint: (checkpoint / "tokenizer.json").write_text("{}"),
        ["tokenizer.json", "no usable tokenizer"],
    ),
    "Qwen2.5-VL": (set_config(model_type="qwen2_5_vl"), ["qwen2_5_vl"]),
    "Qwen3-VL": (set_config(model_type="qwen3_vl"), ["qwen3_vl"]),
    "Qwen2": (set_config(model_type="qwen2"), ["'qwen2'"]),
    "Llama": (set_config(model_type="llama", architectures=["LlamaForCausalLM"]), ["LlamaForCausalLM"]),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoints_are_refused(damage, words, checkpoint, tmp_path):
    rename(checkpoint, newer)
    damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint, tmp_path / "bundle")
    for word in [*words, str(checkpoint)]:
        assert word in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("path", ["nowhere", "checkpoint/config.json"])
def test_no_folder(path, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        export_checkpoint(tmp_path / path, tmp_path / "bundle")


def test_qwen2_5_weights_under_a_qwen2_config(checkpoint, tmp_path):
    """A wrong config beside the weights shows in the tensors: Qwen2.5-VL's vision MLP is gated."""
    rename(checkpoint, published)

    def change(tensors):
        for name in [n for n in tensors if ".mlp.fc1." in n]:
            tensors[name.replace("fc1", "gate_proj")] = tensors.pop(name)

    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"visual\.blocks\.0\.mlp\.fc1"):
        export_checkpoint(checkpoint, tmp_path / "bundle")


def nest_preprocessor(checkpoint: Path) -> dict:
    """Keep the pictures' settings as transformers 5 saves them; returns them."""
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    settings["size"] = {
        "shortest_edge": settings.pop("min_pixels"),
        "longest_edge": settings.pop("max_pixels"),
    }
    nested = {"image_processor": settings, "processor_class": settings.pop("processor_class")}
    (checkpoint / "processor_config.json").write_text(json.dumps(nested))
    (checkpoint / "preprocessor_config.json").unlink()
    return settings


def test_preprocessor_of_newer_transformers(checkpoint, tmp_path):
    settings = nest_preprocessor(checkpoint)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert json.loads(bundle.file("preprocessor_config.json").read_text()) == settings


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"processor_class": "Qwen2VLProcessor"}', '{"image_processor": 3}']
)
def test_a_damaged_preprocessor_of_newer_transformers(text, checkpoint, tmp_path):
    nest_preprocessor(checkpoint)
    (checkpoint / "processor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"processor_config\.json"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_chat_template_is_found(place, checkpoint, tmp_path):
    template = "{{ 'ü' }}\n{% if x %}\n"
    text = template if place.endswith("jinja") else json.dumps({"chat_template": template})
    (checkpoint / place).write_text(text, encoding="utf-8")
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert json.loads(bundle.file("chat_template.json").read_text(encoding="utf-8")) == {
        "chat_template": template
    }


def test_of_named_chat_templates_the_default_one_is_taken(checkpoint, tmp_path):
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert json.loads(bundle.file("chat_template.json").read_text()) == {"chat_template": "b"}


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_damaged_chat_template(text, checkpoint, tmp_path):
    (checkpoint / "chat_template.json").write_text(text)
    with pytest.raises(CheckpointError, match="chat template cannot be read"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
