"""This project, through its public interface."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from bench.compare.worker import main
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import Session

# A chat template that is the text alone; content may be a string or a list of items.
BARE = "{% set c = messages[0].content %}{{ c if c is string else c[0].text }}"


class Ours:
    """A session of one bundle."""

    packages = ("qwen2vl_rt", "onnxruntime")

    @staticmethod
    def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
        """Export."""
        export_checkpoint(checkpoint, folder, precision)

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        self._session = Session(
            folder, backend="cpu", threads=threads, max_length=4096, max_pixels=1280 * 1280
        )

    def text(self, ids: list[int], text: str, new_tokens: int) -> dict[str, float]:
        """A prompt without the chat's template."""
        started = time.perf_counter()
        answer = self._session.generate(
            text, chat_template=BARE, max_new_tokens=new_tokens, ignore_eos=True, repetition_penalty=1.0
        )
        return {
            "prompt_tokens": answer.usage.prompt_tokens - answer.usage.cached_tokens,
            # All that isn't decoding: tokenizing and handing over are part of the way to the first token.
            "prefill_seconds": time.perf_counter() - started - answer.timings.decode,
            "decode_seconds": answer.timings.decode,
        }

    def vision(self, picture: np.ndarray) -> dict[str, float]:
        """Preparation and vision tower."""
        height, width, _ = picture.shape
        answer = self._session.generate(
            "Describe.",
            images=[picture],
            resized_width=width,
            resized_height=height,
            max_new_tokens=1,
            ignore_eos=True,
        )
        timings = answer.timings
        return {
            "seconds": timings.load + timings.resize + timings.vision,
            "tokens": answer.usage.visual_tokens,
        }


if __name__ == "__main__":
    main(Ours)
