"""transformers on a GPU, for comparison: bfloat16, static cache, torch.compile. Prints one JSON line.

python bench/gpu_peer.py CHECKPOINT PROMPT_TOKENS ANSWER_TOKENS [DEVICE]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
import transformers
from transformers import Qwen2VLForConditionalGeneration


def main() -> None:
    checkpoint, prompt, answer = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    device = sys.argv[4] if len(sys.argv) > 4 else "cuda"
    model = (
        Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).to(device).eval()
    )
    vocabulary = model.get_input_embeddings().num_embeddings

    def seconds(tokens: int) -> float:
        ids = torch.randint(0, vocabulary // 2, (1, prompt), device=device)
        started = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        for _ in range(3):  # compiles
            seconds(answer)
            seconds(1)
        whole = statistics.median(seconds(answer) for _ in range(5))
        first = statistics.median(seconds(1) for _ in range(5))
    print(
        json.dumps(
            {
                "transformers": transformers.__version__,
                "torch": torch.__version__,
                "first token, s": round(first, 4),
                "decode, tok/s": round((answer - 1) / (whole - first), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
