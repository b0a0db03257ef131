"""A small checkpoint with random weights, made without PyTorch: machines with a GPU have their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.random_checkpoint import published_config, write_random_checkpoint
from bench.tiny import TINY


def small_config(layers: int) -> dict[str, Any]:
    """So many layers each, 4 query heads of 64 over 2 key/value heads, a tied table of 640 tokens."""
    config = published_config("2b", layers) | {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 384,
        "vocab_size": 640,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    }
    config["vision_config"] |= {"depth": layers, "embed_dim": 64, "num_heads": 2, "hidden_size": 256}
    return config


def small_checkpoint(folder: Path) -> Path:
    """Of two layers, with random weights."""
    write_random_checkpoint(folder, small_config(2), TINY)
    return folder
