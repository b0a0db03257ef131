"""Text to token ids, and the bytes behind each token id."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from qwen2vl_rt.errors import BundleError, InputError

#: Special tokens that a user may write: the model's notation for objects and places. All others belong to
#: the chat template and to the pictures alone.
GROUNDING_TOKENS = frozenset(
    f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")
)


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes bytes as printable characters: some as themselves, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


class Tokenizer:
    """The bundle's tokenizer.json.

    Attributes:
        special_ids: ids of the tokens marked special (left out of decoded text).
        reserved: content of the special tokens that may not stand in a user's text.
    """

    def __init__(self, path: Path):
        try:
            # Not from_file, which takes no path beyond UTF-8.
            self._tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises Exception itself
            raise BundleError(f"{path}: no usable tokenizer: {error}") from None
        self._path = path
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.reserved = tuple(
            token.content
            for _, token in sorted(added.items())
            if token.special and token.content not in GROUNDING_TOKENS
        )

    @property
    def size(self) -> int:
        """One more than the highest id. The model's vocabulary may have further, unused rows."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def token_of(self, id_: int) -> str | None:
        """An id's token as the vocabulary writes it, or None."""
        return self._tokenizer.id_to_token(id_)

    def encode(self, text: str) -> np.ndarray:
        """int32 [tokens]; special tokens in the text become their ids, as in the reference."""
        try:
            return np.asarray(self._tokenizer.encode(text).ids, dtype=np.int32)
        except Exception as error:
            raise InputError(f"the text cannot be tokenized: {error}") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._tokenizer.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special_tokens)

    def token_bytes(self, size: int | None = None) -> list[bytes]:
        """The bytes that each id stands for, by id; empty where an id is unused.

        size: length of the list (default: `size`); the model's vocabulary where that is larger.
        Joined and decoded with errors="replace" they give what `decode(ids, skip_special_tokens=False)`
        gives.
        """
        table = [b""] * (self.size if size is None else size)
        byte_of = _byte_of_character()
        for token, id_ in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if id_ >= len(table):
                raise BundleError(f"{self._path}: token id {id_} lies outside a vocabulary of {len(table)}")
            try:
                table[id_] = bytes([byte_of[character] for character in token])
            except KeyError:  # an added token with characters outside the alphabet stands for itself
                table[id_] = token.encode("utf-8")
        return table
