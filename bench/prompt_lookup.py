"""Decode speed with prompt lookup, by how much of the answer stands in the prompt.

    python bench/prompt_lookup.py BUNDLE --limits 0 4 8 16

Random weights answer nonsense, so the answer is given: every step runs the bundle's decoder on the CPU and
pays its full price, then the logits are replaced by the text that the case calls for. Texts are this
repository's documents, a token a word, a digit or a run of signs; ids are arbitrary, since no weight has
learnt any.

- copy: the answer is a passage of the prompt;
- corrected copy: the same with every twentieth token another;
- prose: the answer is what follows the prompt in its document.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.backends.cpu.executors import CpuDecoder
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.weights import embedding_table

DOCUMENTS = ("LICENSE", "docs/bundle-format.md", "docs/architecture.md", "docs/preparation.md")
PIECE = re.compile(r" ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\d|\s+")


class ScriptedDecoder(CpuDecoder):
    """The bundle's decoder, its logits replaced: position p is followed by `script[p + 1]`."""

    script: np.ndarray

    def run(self, step: _core.DecoderStep) -> None:
        """Run the step at full price, then say what is to be said."""
        super().run(step)
        step.logits[:] = 0
        for row, wanted in enumerate(step.logit_rows[0]):
            step.logits[0, row, self.script[step.past_length[0] + wanted + 1]] = 1


def cases(prompt: int, answer: int, vocabulary: int) -> dict[str, list[tuple[list[int], list[int]]]]:
    """(prompt, answer) pairs of token ids by case, one for each document that is long enough."""
    root = Path(__file__).parents[1]
    texts = [PIECE.findall((root / name).read_text()) for name in DOCUMENTS]
    ids = {piece: number for number, piece in enumerate(sorted({piece for text in texts for piece in text}))}
    if len(ids) > vocabulary:
        raise SystemExit(f"The texts have {len(ids)} different tokens, the bundle's vocabulary {vocabulary}.")
    generator = random.Random(0)
    result: dict[str, list[tuple[list[int], list[int]]]] = {"copy": [], "corrected copy": [], "prose": []}
    for text in texts:
        tokens = [ids[piece] for piece in text]
        if len(tokens) < prompt + answer:
            continue
        head, passage = tokens[:prompt], tokens[prompt // 4 : prompt // 4 + answer]
        corrected = [generator.randrange(len(ids)) if i % 20 == 19 else t for i, t in enumerate(passage)]
        result["copy"].append((head, passage))
        result["corrected copy"].append((head, corrected))
        result["prose"].append((head, tokens[prompt : prompt + answer]))
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--limits", type=int, nargs="+", default=[0, 8], help="prompt_lookup, the first to compare with"
    )
    parser.add_argument("--prompt", type=int, default=400, help="tokens")
    parser.add_argument("--answer", type=int, default=120, help="tokens")
    parser.add_argument("--documents", type=int, default=len(DOCUMENTS))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    bundle = Bundle.open(options.bundle)
    decoder = bundle.geometry.decoder
    ids = bundle.geometry.special_ids
    cache = _core.KVCache(
        decoder.layers, 1, decoder.kv_heads, options.prompt + options.answer + 1, decoder.head_dim
    )
    executor = ScriptedDecoder(bundle, cache, options.threads)
    table = embedding_table(bundle)
    rope = _core.RopeTable(decoder.head_dim, decoder.rope_theta, decoder.mrope_section)
    generator = _core.Generator(
        _core.HostDecoder(executor, cache, table, rope, prefill_chunk=512),
        _core.TokenText([b" "] * decoder.vocab_size, []),
        hidden_size=decoder.hidden_size,
        vocab_size=decoder.vocab_size,
        merge_size=bundle.geometry.vision.merge_size,
        image_pad=ids.image_pad,
        video_pad=ids.video_pad,
    )
    measured = []
    print(f"{'case':<16}{'limit':>6}{'tokens/s':>10}{'of plain':>10}{'tokens/step':>13}{'true':>7}")
    for case, pairs in cases(options.prompt, options.answer, decoder.vocab_size).items():
        plain = None
        for limit in options.limits:
            results = []
            for prompt, answer in pairs[: options.documents]:
                executor.script = np.array([*prompt, *answer, 0])
                request = _core.Request(prompt, max_new_tokens=len(answer), prompt_lookup=limit)
                (result,) = generator.generate([request])
                assert result.token_ids == answer
                results.append(result)
            tokens = sum(len(result.token_ids) - 1 for result in results)
            rate = tokens / sum(result.decode_seconds for result in results)
            plain = plain or rate
            steps = sum(result.steps for result in results)
            drafted = sum(result.drafted_tokens for result in results)
            figures = {
                "case": case,
                "limit": limit,
                "tokens_per_second": rate,
                "speedup": rate / plain,
                "tokens_per_step": tokens / steps,
                "accepted": sum(result.accepted_tokens for result in results) / drafted if drafted else None,
            }
            measured.append(figures)
            true = f"{figures['accepted']:7.0%}" if drafted else f"{'-':>7}"
            print(
                f"{case:<16}{limit:>6}{rate:>10.1f}{rate / plain:>10.2f}{tokens / steps:>13.2f}{true}",
                flush=True,
            )
    if options.json:
        options.json.write_text(
            json.dumps({"bundle": bundle.name, "precision": bundle.precision, "figures": measured}, indent=2)
        )


if __name__ == "__main__":
    main()
