"""transformers on a GPU, for comparison: bfloat16, static cache, torch.compile, random weights.

    python bench/gpu_peer.py 2b --output peer-2b.json

With a static cache on a GPU transformers compiles decode steps by itself (torch.compile, "reduce-overhead":
CUDA graphs). --device cpu tries this script, without compiling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from bench.random_checkpoint import PUBLISHED, published_config

PROMPT, ANSWER, REPEATS = 512, 128, 5  # as bench/gpu.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=sorted(PUBLISHED))
    parser.add_argument("--layers", type=int, help="decoder layers (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    config = Qwen2VLConfig(**published_config(options.size, options.layers))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(options.device):
        model = Qwen2VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    vocabulary = model.get_input_embeddings().num_embeddings

    def seconds(tokens: int) -> float:
        ids = torch.randint(0, vocabulary // 2, (1, PROMPT), device=options.device)
        started = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        first = statistics.median([seconds(1) for _ in range(REPEATS + 1)][1:])
        for _ in range(3):  # compiles
            seconds(ANSWER)
        whole = statistics.median(seconds(ANSWER) for _ in range(REPEATS))
    figures = [
        {"name": f"first token after {PROMPT}", "value": first, "unit": "s"},
        {"name": f"decode after {PROMPT}", "value": (ANSWER - 1) / (whole - first), "unit": "tok/s"},
    ]
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    options.output.write_text(json.dumps({"versions": versions, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
