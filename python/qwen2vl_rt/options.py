"""What a caller may ask of one generation, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from qwen2vl_rt._core import LONGEST_DRAFT
from qwen2vl_rt.errors import InputError


@dataclass(frozen=True)
class GenerationOptions:
    """How one answer is generated.

    The default is greedy decoding: the same input gives the same answer. `temperature > 0` samples.
    """

    max_new_tokens: int = 512
    """Upper limit of answer tokens, the stop token included; at least 1."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 divides the logits before sampling."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 is off."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities add up to p; 1 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest; 0 is off."""
    repetition_penalty: float | None = None
    """Divides (multiplies, where negative) the logits of tokens that the prompt or the answer holds. None
    takes the bundle's own generation settings, 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that the answer holds."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time the answer holds it."""
    seed: int = 0
    """The same seed, prompt and options draw the same answer."""
    logprobs: int | None = None
    """n: report each answer token's log-probability and the n likeliest beside it (0: only its own)."""
    stop: tuple[str, ...] = field(default=())
    """The answer ends before the first of these strings; they are not part of its text."""
    ignore_eos: bool = False
    """Go on past the model's own stop tokens, up to max_new_tokens."""
    prompt_lookup: int = 0
    """n: guess up to n next tokens at a time, check them in one pass of the decoder and keep the right ones;
    0 is off. The answer stays the same, and one that copies text comes sooner (docs/prompt-lookup.md). With
    the cpu backend."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens!r}: give a whole number, 1 or more.")
        drafted = self.prompt_lookup
        if isinstance(drafted, bool) or not isinstance(drafted, int) or not 0 <= drafted <= LONGEST_DRAFT:
            raise InputError(
                f"prompt_lookup is {drafted!r}: give how many tokens to guess at a time, 0 (off) to "
                f"{LONGEST_DRAFT}."
            )
        if any(not isinstance(text, str) or not text for text in stop):
            raise InputError(f"stop is {stop!r}: give non-empty strings.")

    @classmethod
    def names(cls) -> Iterable[str]:
        """The keyword arguments that belong to these options."""
        return [f.name for f in fields(cls)]


def split_options(keywords: dict[str, Any]) -> tuple[GenerationOptions, dict[str, Any]]:
    """Part `keywords` into generation options and the rest, which describes the prompt."""
    names = set(GenerationOptions.names())
    options = {name: value for name, value in keywords.items() if name in names}
    rest = {name: value for name, value in keywords.items() if name not in names}
    return GenerationOptions(**options), rest
