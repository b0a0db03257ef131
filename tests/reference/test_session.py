"""A session answers as the reference does: positions, features, logits and 64 greedy tokens, case by case."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import Session, _core
from tests.reference.reference import Reference, frames, picture
from tests.support.random_model import of_the_tiny_tokenizer, random_model, save_checkpoint

SEEDS = range(12)
TOKENS = 64


@dataclass
class Pair:
    """One model, run by the reference and by a session."""

    reference: Reference
    session: Session


def random_shape(seed: int) -> dict:
    """Sizes of a random model: head counts, section splits, depths, tied and untied."""
    draw = random.Random(seed)
    head_dim = draw.choice([16, 32])
    kv_heads = draw.choice([1, 2])
    heads = kv_heads * draw.choice([1, 2, 3])
    time = draw.randrange(1, head_dim // 4)
    height = draw.randrange(1, head_dim // 2 - time)
    return {
        "hidden_size": heads * head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "mrope_section": (time, height, head_dim // 2 - time - height),
        "layers": draw.randrange(1, 4),
        "mlp_size": draw.choice([48, 96]),
        "tied": draw.random() < 0.5,
        "vision_depth": draw.randrange(1, 4),
        "vision_heads": draw.choice([1, 2, 4]),
        "vision_dim": 32,
    }


@pytest.fixture(scope="module", params=[*SEEDS, "tiny"], ids=lambda which: f"model-{which}")
def pair(request, tmp_path_factory) -> Pair:
    """Random models of many shapes, and the trained tiny checkpoint."""
    folder = tmp_path_factory.mktemp(f"model-{request.param}")
    if request.param == "tiny":
        checkpoint, model = TINY, None
    else:
        checkpoint, model = random_checkpoint(request.param, folder)
    export_checkpoint(checkpoint, folder / "bundle", "fp32")
    with Session(folder / "bundle", max_length=1024, max_batch=3, threads=2) as session:
        yield Pair(Reference(checkpoint, model), session)


def random_checkpoint(seed: int, folder: Path) -> tuple[Path, torch.nn.Module]:
    model = random_model(seed, **of_the_tiny_tokenizer(), **random_shape(seed))
    return save_checkpoint(model, folder / "checkpoint", tokenizer=TINY), model


def ask(text: str, *visuals: dict) -> list[dict]:
    return [{"role": "user", "content": [*visuals, {"type": "text", "text": text}]}]


def image(seed: int, width: int, height: int) -> dict:
    return {"type": "image", "image": picture(seed, width, height)}


def video(seed: int, count: int, width: int, height: int) -> dict:
    """Frames at their own size: both sides then see the same pixels."""
    return {
        "type": "video",
        "video": frames(seed, count, width, height),
        "resized_height": height,
        "resized_width": width,
    }


CASES = {
    "one picture": ask("What is this?", image(1, 150, 97)),
    "three pictures of different shapes": ask(
        "Compare.", image(2, 60, 60), image(3, 200, 90), image(4, 70, 130)
    ),
    "extreme aspect ratio": ask("Read it.", image(5, 1500, 30)),
    "video longer than wide": ask("What moves?", video(6, 12, 56, 56)),
    "odd number of frames": ask("What moves?", video(7, 5, 84, 56)),
    "picture, video and text": ask("Same thing?", image(8, 90, 120), video(9, 4, 112, 56)),
    "text only": ask("Say something."),
}


@pytest.fixture(scope="module")
def expected(pair) -> dict[str, list[int]]:
    """The reference's greedy tokens, case by case."""
    return {name: pair.reference.generate(messages, TOKENS) for name, messages in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_identical(pair, expected, case):
    answer = pair.session.generate(CASES[case], max_new_tokens=TOKENS)
    assert list(answer.token_ids) == expected[case]


def test_a_batch_of_different_lengths_equals_its_singles(pair, expected):
    answers = pair.session.generate_batch(list(CASES.values()), max_new_tokens=TOKENS)
    assert [list(answer.token_ids) for answer in answers] == list(expected.values())


@pytest.mark.parametrize("case", CASES)
def test_inputs_features_and_logits(pair, case):
    """Pixels and positions are equal; features and logits agree within 1e-4 of their largest value."""
    inputs = pair.reference.inputs(CASES[case])
    prepared = pair.session._processor.prepare(CASES[case])
    np.testing.assert_array_equal(prepared.token_ids, inputs["input_ids"][0])

    ids = pair.session.bundle.geometry.special_ids
    positions, delta = _core.mrope_positions(
        prepared.token_ids, prepared.grids, ids.image_pad, ids.video_pad, 2
    )
    expected_positions, expected_delta = pair.reference.positions(inputs)
    np.testing.assert_array_equal(positions, expected_positions)
    assert delta == expected_delta

    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        visuals = [visual for visual in prepared.visuals if visual.kind == kind]
        if not visuals:
            continue
        patches = np.concatenate([visual.patches.reshape(-1, 1176) for visual in visuals])
        np.testing.assert_array_equal(patches, inputs[pixels])
        features = np.concatenate(pair.session._model.encode(visuals))
        expected_features = pair.reference.features(inputs[pixels], inputs[grid])
        assert_close(features, expected_features)

    vocab = pair.session.bundle.geometry.decoder.vocab_size
    answer = pair.session.generate(CASES[case], max_new_tokens=1, logprobs=vocab)
    logits = np.empty(vocab)
    for token, logprob in answer.logprobs[0].top:
        logits[token] = logprob
    expected_logits = torch.tensor(pair.reference.last_logits(CASES[case])).log_softmax(-1).numpy()
    assert_close(logits, expected_logits)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
