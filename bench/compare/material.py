"""What every runtime is given: the same prompts of an exact length, and the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from qwen2vl_rt.benchmark import random_picture

WORD_MARK = "Ġ"  # how the tokenizer's vocabulary writes a word's leading space


class Prompts:
    """Random words, each one token, so that a text has as many tokens as words in every runtime."""

    def __init__(self, checkpoint: Path, seed: int = 0) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        vocabulary = self._tokenizer.get_vocab()
        words = [word for word in vocabulary if word.startswith(WORD_MARK) and word[1:].isascii()]
        self._words = sorted(word[1:] for word in words if word[1:].isalpha() and word[1:].islower())
        self._rng = np.random.default_rng(seed)

    def next(self, tokens: int) -> tuple[list[int], str]:
        """Token ids and text of a prompt not given before."""
        while True:
            # A space first: the first word is a token of the same kind as the others.
            text = " " + " ".join(self._rng.choice(self._words, tokens))
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == tokens:
                return ids, text


def write_picture(folder: Path, width: int, height: int, seed: int) -> Path:
    """A picture of noise as a file for numpy, uint8 [height, width, 3]."""
    file = folder / f"{width}x{height}-{seed}.npy"
    np.save(file, random_picture(width, height, np.random.default_rng(seed)))
    return file
