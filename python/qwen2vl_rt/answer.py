"""What a generation returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qwen2vl_rt.boxes import Box


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int
    """Positions of the prompt in the cache, visual tokens included."""
    visual_tokens: int
    """Of these, how many are pictures and videos."""
    cached_tokens: int
    """Of the prompt's, how many were still in the cache from an earlier call and were not computed again."""
    answer_tokens: int
    """Tokens generated, the stop token included."""
    drafted_tokens: int = 0
    """Tokens guessed ahead and checked, where `prompt_lookup` asked for it."""
    accepted_tokens: int = 0
    """Of these, the guesses that came true: each saved a pass of the decoder."""


@dataclass(frozen=True)
class Timings:
    """Where the time of one answer went, in seconds.

    In a batch, vision is that of the whole batch, and decode lasts as long as the answer's row was in use:
    the answers were generated side by side. Waiting is in none of them: for other calls of the session, and
    in a batch for the preparation and prefill of others' prompts.
    """

    load: float
    """Reading and decoding pictures and videos."""
    resize: float
    """Resizing and normalising them, cutting them into patches."""
    tokenize: float
    """Chat template and tokenizer."""
    vision: float
    """The vision tower."""
    prefill: float
    """The prompt through the decoder, up to the first token."""
    decode: float
    """All tokens after the first."""
    prefill_tokens_per_second: float
    decode_tokens_per_second: float

    @property
    def first_token(self) -> float:
        """Time to first token: every stage before decode."""
        return self.load + self.resize + self.tokenize + self.vision + self.prefill

    @property
    def total(self) -> float:
        """The sum of all stages."""
        return self.first_token + self.decode


@dataclass(frozen=True)
class TokenLogprob:
    """One answer token's natural log-probability under the model, before temperature and penalties."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place, best first: (token id, log-probability)."""


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt."""

    text: str
    """The answer without special tokens."""
    raw_text: str
    """The answer with its special tokens (box and object markers), the stop token left out."""
    token_ids: tuple[int, ...]
    """Every generated token, the stop token included."""
    finish_reason: str
    """`"stop"` (stop token or stop string), `"length"` (max_new_tokens) or `"cancelled"`."""
    stop_string: str | None
    """The stop string that ended the answer, if one did."""
    boxes: tuple[Box, ...]
    """Boxes named in the answer, in pixels of the picture they refer to."""
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = field(default=())
    """One entry a token of `token_ids` where they were asked for, else empty."""

    def to_json(self) -> dict[str, Any]:
        """The answer as plain lists, dicts, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text
