"""GPTQ and AWQ checkpoints of random models, exported in float32: the reference's own greedy tokens.

The reference computes with the matrices that the codes stand for, dequantized by the tests' own formula.
"""

from __future__ import annotations

import random

import pytest

from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import Session
from tests.reference.reference import Reference, picture
from tests.support import quantized_checkpoint as layouts
from tests.support.quantized_checkpoint import save_quantized
from tests.support.random_model import of_the_tiny_tokenizer, random_model

TOKENS = 48
LAYOUTS = {
    "gptq-int4": layouts.GPTQ_INT4,
    "gptq-int8": layouts.GPTQ_INT8,
    "awq": layouts.AWQ,
    "gptq-v2": layouts.GPTQ_V2,
    "gptq-asymmetric": layouts.GPTQ_ASYMMETRIC,
}


def random_shape(seed: int, group: int) -> dict:
    """Sizes that the group divides, and no matrix but q_proj and o_proj square."""
    draw = random.Random(seed)
    head_dim = draw.choice([32, 64])
    time = draw.randrange(1, head_dim // 4)
    height = draw.randrange(1, head_dim // 2 - time)
    return {
        "hidden_size": 128,
        "heads": 128 // head_dim,
        "kv_heads": draw.choice([1, 2]),
        "mrope_section": (time, height, head_dim // 2 - time - height),
        "layers": draw.randrange(1, 4),
        "mlp_size": group * draw.choice([3, 5]),
        "tied": draw.random() < 0.5,
        "vision_depth": draw.randrange(1, 3),
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_greedy_tokens_equal_the_dequantized_model(name, tmp_path):
    seed, layout = list(LAYOUTS).index(name), LAYOUTS[name]
    shape = random_shape(seed, layout.group)
    model = random_model(seed, **of_the_tiny_tokenizer(), **shape)
    checkpoint = save_quantized(model, tmp_path / "checkpoint", layout, tokenizer=TINY).path
    export_checkpoint(checkpoint, tmp_path / "bundle")
    reference = Reference(checkpoint, model)
    with Session(tmp_path / "bundle", max_length=512, threads=2) as session:
        for visuals, text in (
            ([], "Name a colour."),
            ([{"type": "image", "image": picture(seed, 84, 140)}], "What is this?"),
        ):
            messages = [{"role": "user", "content": [*visuals, {"type": "text", "text": text}]}]
            found = session.generate(messages, max_new_tokens=TOKENS)
            assert list(found.token_ids) == reference.generate(messages, TOKENS)
