"""Write a checkpoint of a published size with random weights: the layout of the hub, without a download.

    python -m bench.random_checkpoint --size 2b --output DIR
    python -m bench.random_checkpoint --size 72b --layers 4 --sparse --output DIR

Weights go to disk block by block. `--sparse` writes only the headers and leaves holes (all weights zero) that
take no room on the disk. `--tokenizer DIR` takes tokenizer.json, tokenizer_config.json and chat_template.json
from there instead of from models/tiny.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from bench.tiny import TINY
from qwen2vl_export.decoder import EMBEDDING_SOURCE, decoder_graph
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.vision import vision_graph
from qwen2vl_rt.bundle import MANIFEST
from qwen2vl_rt.geometry import Geometry

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 10**9
BLOCK_NUMBERS = 2**22

# hidden, layers, heads, kv heads, MLP, vocabulary, tied: what differs between the published sizes.
PUBLISHED = {
    "2b": (1536, 28, 12, 2, 8960, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
    "72b": (8192, 80, 64, 8, 29568, 152064, False),
}
PREPROCESSOR_CONFIG = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}
GENERATION_CONFIG = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.0,
    "temperature": 0.01,
    "top_p": 0.001,
    "top_k": 1,
}

# The tokens whose ids the configuration states, and where.
SPECIAL_TOKENS = {
    "<|endoftext|>": ("bos_token_id", "pad_token_id"),
    "<|im_end|>": ("eos_token_id",),
    "<|vision_start|>": ("vision_start_token_id",),
    "<|vision_end|>": ("vision_end_token_id",),
    "<|vision_pad|>": ("vision_token_id",),
    "<|image_pad|>": ("image_token_id",),
    "<|video_pad|>": ("video_token_id",),
}


def published_config(size: str, layers: int | None = None) -> dict[str, Any]:
    """Return config.json as the hub has it for "2b", "7b" or "72b", with fewer layers if asked."""
    hidden, all_layers, heads, kv_heads, mlp, vocabulary, tied = PUBLISHED[size]
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": 32768,
        "max_window_layers": all_layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": layers or all_layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": vocabulary,
    }


def tensor_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a published checkpoint of this geometry."""
    decoder = decoder_graph(geometry.decoder, "fp32")
    vision = vision_graph(geometry.vision, geometry.decoder.hidden_size, "fp32")
    shapes = {EMBEDDING_SOURCE: (geometry.decoder.vocab_size, geometry.decoder.hidden_size)}
    for weight in [*decoder.weights, *vision.weights]:
        shapes[weight.source] = weight.source_shape
    return shapes


def write_random_checkpoint(
    folder: Path,
    config: dict[str, Any],
    tokenizer: Path,
    *,
    seed: int = 0,
    sparse: bool = False,
) -> int:
    """Write the checkpoint and return the bytes of its weights (bfloat16).

    `tokenizer` is a folder with the files of one; where its special tokens have other ids than the published
    model's (a small tokenizer), the configuration states those.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, generation_config = with_ids_of(tokenizer, config)
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)
    _write_json(folder / "generation_config.json", generation_config)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())

    shapes = tensor_shapes(Geometry.from_config(config, generation_config))
    shards: list[list[str]] = [[]]
    in_shard = 0
    for name, shape in shapes.items():
        if shards[-1] and in_shard + 2 * math.prod(shape) > SHARD_BYTES:
            shards.append([])
            in_shard = 0
        shards[-1].append(name)
        in_shard += 2 * math.prod(shape)

    total = sum(2 * math.prod(shape) for shape in shapes.values())
    weight_map: dict[str, str] = {}
    rng = np.random.default_rng(seed)
    with tqdm(total=total, unit="B", unit_scale=True, desc=str(folder), disable=None) as bar:
        for i, names in enumerate(shards):
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(folder / file, {name: shapes[name] for name in names}, rng, sparse, bar)
            weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / INDEX, index)
    return total


def with_ids_of(tokenizer: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and GENERATION_CONFIG with the special ids of the tokenizer in that folder."""
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    ids = {key: added[name] for name, keys in SPECIAL_TOKENS.items() for key in keys}
    generation = GENERATION_CONFIG | {key: ids[key] for key in ("bos_token_id", "pad_token_id")}
    generation["eos_token_id"] = [ids["eos_token_id"], ids["bos_token_id"]]
    return config | {key: value for key, value in ids.items() if key in config}, generation


def random_checkpoint(size: str, work: Path, tokenizer: Path = TINY) -> Path:
    """The folder work/checkpoint: a random checkpoint of a published size, made once."""
    folder = work / "checkpoint"
    if not (folder / INDEX).exists():
        write_random_checkpoint(folder, published_config(size), tokenizer)
    return folder


def random_bundle(size: str, precision: str, work: Path, tokenizer: Path = TINY) -> Path:
    """The folder work/bundle-PRECISION, exported from `random_checkpoint`, made once."""
    folder = work / f"bundle-{precision}"
    if not (folder / MANIFEST).exists():
        export_checkpoint(random_checkpoint(size, work, tokenizer), folder, precision)
    return folder


def _write_shard(
    file: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator, sparse: bool, bar: tqdm
) -> None:
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        if sparse:
            stream.truncate(8 + len(text) + position)
            bar.update(position)
            return
        for name, shape in shapes.items():
            for block in _random_blocks(name, shape, rng):
                stream.write(block.view(np.uint8))
                bar.update(block.nbytes)


def _random_blocks(name: str, shape: tuple[int, ...], rng: np.random.Generator):
    """Yield a tensor's numbers, scaled so that activations and logits stay in a trained model's range."""
    center, scale = 0.0, 0.02
    if len(shape) == 1:
        center = 1.0 if name.endswith("weight") else 0.0
    else:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
    left = math.prod(shape)
    while left:
        count = min(left, BLOCK_NUMBERS)
        block = rng.standard_normal(count, np.float32) * np.float32(scale) + np.float32(center)
        yield block.astype(ml_dtypes.bfloat16)
        left -= count


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(PUBLISHED), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--tokenizer", type=Path, default=TINY, help="folder with tokenizer.json and its settings"
    )
    parser.add_argument("--layers", type=int, help="decoder layers (default: all)")
    parser.add_argument("--sparse", action="store_true", help="all weights zero, as holes that take no disk")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = published_config(options.size, options.layers)
    total = write_random_checkpoint(
        options.output, config, options.tokenizer, seed=options.seed, sparse=options.sparse
    )
    print(f"{options.output}: {total / 1e9:.2f} GB of bfloat16 weights")


if __name__ == "__main__":
    main()
