"""A small checkpoint with random weights, made without PyTorch: machines with a GPU have their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.random_checkpoint import GENERATION_CONFIG, published_config, write_random_checkpoint

# As the tokenizer has them.
IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, END_OF_TEXT, IM_END = 546, 547, 543, 544, 534, 536
TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "tiny"


def small_config(layers: int) -> dict[str, Any]:
    """So many layers each, 4 query heads of 64 over 2 key/value heads, a tied table of 640 tokens."""
    config = published_config("2b", layers) | {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 384,
        "vocab_size": 640,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": IM_END,
    }
    config["vision_config"] |= {"depth": layers, "embed_dim": 64, "num_heads": 2, "hidden_size": 256}
    return config


def small_checkpoint(folder: Path) -> Path:
    """Of two layers, with random weights."""
    ids = {"bos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT, "eos_token_id": [IM_END, END_OF_TEXT]}
    write_random_checkpoint(folder, small_config(2), TOKENIZER, generation_config=GENERATION_CONFIG | ids)
    return folder
