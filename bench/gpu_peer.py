"""transformers on a GPU, for comparison: bfloat16, static cache, torch.compile, random weights.

    python -m bench.gpu_peer 2b --output peer-2b.json

With a static cache on a GPU transformers (4.57 and 5) compiles decode steps by itself (torch.compile,
"reduce-overhead": CUDA graphs). What the compiler counted is part of the result; exits with 1 when it
compiled nothing. --device cpu tries this script, without compiling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._dynamo.utils import counters
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from bench.random_checkpoint import PUBLISHED, published_config

PROMPT, ANSWER, REPEATS = 512, 128, 5  # as bench/gpu_model.py


def compiler_counts() -> dict[str, dict[str, int]]:
    """What torch.compile has counted by now: graphs, graph breaks, and inductor's (cudagraph_skips, ..)."""
    return {
        name: {str(key): int(number) for key, number in counters[name].items()}
        for name in ("stats", "graph_break", "inductor")
    }


def compiled_graphs(counts: dict[str, dict[str, int]]) -> int:
    """How many graphs these counts are of."""
    return counts["stats"].get("unique_graphs", 0)


def main() -> int:
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
    # Or random weights' answers may end early: min_new_tokens keeps them from it with work in each step.
    model.generation_config.eos_token_id = None
    vocabulary = model.get_input_embeddings().num_embeddings
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    result: dict[str, Any] = {"versions": versions, "figures": []}

    def add(name: str, value: float, unit: str) -> None:
        """Write all so far: what was measured before something went wrong is kept."""
        result["figures"].append({"name": name, "value": value, "unit": unit})
        result["compiler"] = compiler_counts()
        options.output.write_text(json.dumps(result, indent=2) + "\n")

    def seconds(tokens: int) -> float:
        ids = torch.randint(0, vocabulary // 2, (1, PROMPT), device=options.device)
        started = time.perf_counter()
        output = model.generate(  # under torch.no_grad: its own
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
        if options.device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - started
        if output.shape[1] != PROMPT + tokens:
            raise SystemExit(f"{tokens} tokens were asked for, generate() gave {output.shape[1] - PROMPT}")
        return took

    first = statistics.median([seconds(1) for _ in range(REPEATS + 1)][1:])
    add(f"first token after {PROMPT}", first, "s")
    started = time.perf_counter()
    for _ in range(3):  # compiles
        seconds(ANSWER)
    add(f"three answers of {ANSWER} that compile", time.perf_counter() - started, "s")
    whole = statistics.median(seconds(ANSWER) for _ in range(REPEATS))
    add(f"decode after {PROMPT}", (ANSWER - 1) / (whole - first), "tok/s")
    if options.device == "cuda" and not compiled_graphs(compiler_counts()):
        print("torch.compile compiled nothing: this is no peer")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
