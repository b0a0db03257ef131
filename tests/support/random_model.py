"""Small Qwen2-VL models with random weights, made by the reference, for whatever stands on a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from bench.tiny import TINY

VOCABULARY = 512
IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, END_OF_TEXT, IM_END = 505, 506, 502, 503, 500, 501


def random_model(
    seed: int = 0,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    mrope_section: tuple[int, int, int] = (2, 3, 3),
    mlp_size: int = 96,
    vocab_size: int = VOCABULARY,
    tied: bool = False,
    vision_depth: int = 2,
    vision_dim: int = 32,
    vision_heads: int = 2,
    special_ids: dict[str, int] | None = None,
) -> Qwen2VLForConditionalGeneration:
    """Return a random float32 model in eval mode with eager attention.

    Weights are large enough, biases and norms far enough from their neutral values, for a mistake in any
    of them to show in the logits. `special_ids` replaces ids of the config (image_token_id, eos_token_id,
    ...), for a model that goes with a real tokenizer.
    """
    ids = {
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "eos_token_id": IM_END,
        "bos_token_id": END_OF_TEXT,
        "pad_token_id": END_OF_TEXT,
        **(special_ids or {}),
    }
    config = Qwen2VLConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=mlp_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling={"type": "mrope", "mrope_section": list(mrope_section)},
        tie_word_embeddings=tied,
        vision_config={
            "depth": vision_depth,
            "embed_dim": vision_dim,
            "num_heads": vision_heads,
            "hidden_size": hidden_size,
        },
        attn_implementation="eager",
        **ids,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                center = 1.0 if "norm" in name or "ln_q.weight" in name else 0.0
                center = 0.0 if name.endswith("bias") else center
                parameter.normal_(center, 0.2)
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, 1.0 if "embed_tokens" in name else 1.5 / fan_in**0.5)
        model.tie_weights()
    model.generation_config.eos_token_id = [ids["eos_token_id"], ids["pad_token_id"]]
    model.generation_config.pad_token_id = ids["pad_token_id"]
    return model


def of_the_tiny_tokenizer() -> dict[str, Any]:
    """The arguments of `random_model` for a model that goes with the tiny checkpoint's tokenizer."""
    config = json.loads((TINY / "config.json").read_text())
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    ids["pad_token_id"] = ids["bos_token_id"]
    return {"vocab_size": config["vocab_size"], "special_ids": ids}


def save_checkpoint(
    model: Qwen2VLForConditionalGeneration,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 64,
    **save_options: Any,
) -> Path:
    """Save a model with the settings files that the exporter asks for; returns `folder`.

    `tokenizer` is a folder whose tokenizer.json, tokenizer_config.json and chat_template.json go along;
    without it a stub stands in, which is enough for everything but text. `save_options` go to
    `save_pretrained`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, **save_options)
    vision = model.config.vision_config
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    if tokenizer is None:
        (folder / "tokenizer.json").write_text(
            '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
        )
    else:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
            (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder
