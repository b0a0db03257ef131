"""The shipped checkpoint and evaluation set: layout, tokenizer, and a few answers through transformers."""

import json
from pathlib import Path

import pytest

from bench.tiny import TINY
from qwen2vl_rt import evaluate

SPECIAL = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
SPECIAL += " vision_start vision_end vision_pad image_pad video_pad"


@pytest.fixture(scope="module")
def tokenizer():
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def examples():
    return evaluate.load_examples(TINY / "eval")


def test_folder_is_small():
    files = [path for path in TINY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6


def test_published_tensor_names():
    with (TINY / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    assert "lm_head.weight" not in header  # tied
    for name in ("visual.patch_embed.proj", "visual.blocks.0.attn.qkv", "visual.merger.mlp.2"):
        assert f"{name}.weight" in header
    for name in ("embed_tokens", "layers.0.self_attn.q_proj", "layers.0.mlp.gate_proj", "norm"):
        assert f"model.{name}.weight" in header


def test_every_special_token_is_one_id_and_config_agrees(tokenizer):
    config = json.loads((TINY / "config.json").read_text())
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in SPECIAL.split()}
    assert None not in ids.values() and len(set(ids.values())) == len(ids)
    assert all(token < config["vocab_size"] for token in ids.values())
    assert config["vision_start_token_id"] == ids["vision_start"]
    assert config["vision_end_token_id"] == ids["vision_end"]
    assert config["image_token_id"] == ids["image_pad"]
    assert config["video_token_id"] == ids["video_pad"]
    assert config["eos_token_id"] == ids["im_end"]


@pytest.mark.parametrize(
    "text",
    ["Where is the red block?", "STOP 4071", "naïve 東京 🤖 <|im_end|>\n", "a\tb\r\n  c", "(12,345),(6,999)"],
)
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("4071", add_special_tokens=False).ids) == 4


def test_questions_name_pictures_that_are_there(examples):
    assert len(examples) >= 300 and len({example.id for example in examples}) == len(examples)
    for example in examples:
        for part in example.messages[0]["content"]:
            frames = part.get("video") or ([part["image"]] if part["type"] == "image" else [])
            assert all(Path(frame).is_file() for frame in frames)


def test_transformers_answers_a_few_questions(examples):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from models.training.evaluate_reference import Reference

    torch.set_num_threads(2)
    few = {
        task: [e for e in examples if e.task == task][:4] for task in ("colour", "count", "exists", "refusal")
    }
    report = evaluate.score([e for group in few.values() for e in group], Reference(TINY), progress=False)
    assert report.tasks()["all"]["accuracy"] >= 0.5, report.mistakes()
