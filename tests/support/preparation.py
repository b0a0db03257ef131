"""What the tests of preparation share: a small tokenizer, the chat template, settings, random pictures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip

# The published model's template, written again.
TEMPLATE = (
    "{% set pictures = namespace(n=0) %}{% set videos = namespace(n=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' or 'image' in item or 'image_url' in item %}"
    "{% set pictures.n = pictures.n + 1 %}"
    "{% if add_vision_id %}Picture {{ pictures.n }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif item['type'] == 'video' or 'video' in item %}{% set videos.n = videos.n + 1 %}"
    "{% if add_vision_id %}Video {{ videos.n }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> tokenizers.Tokenizer:
    """Every byte is a token, and the family's special tokens follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in SPECIAL])
    return tokenizer


def geometry_for(tokenizer: tokenizers.Tokenizer) -> SimpleNamespace:
    return SimpleNamespace(
        vision=SimpleNamespace(patch_size=14, temporal_patch_size=2, merge_size=2),
        special_ids=SimpleNamespace(
            image_pad=tokenizer.token_to_id("<|image_pad|>"), video_pad=tokenizer.token_to_id("<|video_pad|>")
        ),
    )


PREPROCESSOR = {
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 1280,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def noise(seed: int, height: int, width: int, channels: int | None = 3) -> np.ndarray:
    """A random uint8 picture whose neighbours resemble each other, with hard edges in it."""
    generator = np.random.default_rng(seed)
    shape = (height, width) if channels is None else (height, width, channels)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)
    ramp = ramp if channels is None else ramp[:, :, None]
    picture = (ramp + generator.integers(0, 60, shape)) % 256
    edges = generator.random(shape) < 0.05
    return np.where(edges, generator.choice([0, 255], shape), picture).astype(np.uint8)
