"""Write weights as a checkpoint folder in the family's published layout.

python -m models.training.checkpoint RUN/state.pt FOLDER cuts one from a training state (its average weights).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .model import Geometry, Weights, config, write_json
from .tokenizer import SPECIAL_TOKENS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
)
MIN_PIXELS, MAX_PIXELS = 56 * 56, 448 * 448


def write(folder: Path, weights: Weights, geometry: Geometry, tokenizer_folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer_folder / name, folder / name)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = {token[2:-2]: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    write_json(folder / "config.json", config(geometry, special))
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": special["endoftext"],
            "do_sample": False,
            "eos_token_id": [special["im_end"], special["endoftext"]],
            "pad_token_id": special["endoftext"],
            "transformers_version": "4.57.6",
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
        },
    )
    half = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--last", action="store_true", help="the last weights instead of their running average"
    )
    args = parser.parse_args()
    state = torch.load(args.state, weights_only=True, map_location="cpu")
    weights = state["weights" if args.last else "average"]
    write(args.folder, weights, Geometry(**state["geometry"]), args.state.parent / "tokenizer")


if __name__ == "__main__":
    main()
