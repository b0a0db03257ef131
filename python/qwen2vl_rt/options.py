"""What a caller may ask of a session and of one generation, checked before anything runs."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from qwen2vl_rt._core import LONGEST_DRAFT, SamplingOptions
from qwen2vl_rt.errors import InputError

_MOST_WHOLE = 2**63 - 1
_MOST_THREADS = 1024


def _whole(least: int, most: int = _MOST_WHOLE, meaning: str = "") -> Callable[[str, Any], int]:
    """A check for whole numbers of `least` to `most`, numpy's too; True and 2.0 are none."""

    def check(name: str, value: Any) -> int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            limits = f"{least} or more" if most == _MOST_WHOLE else f"{least} to {most}"
            raise InputError(f"{name} is {value!r:.80}: give a whole number, {limits}{meaning}.")
        return int(value)

    return check


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} is {value!r:.80}: give a number.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _flag(name: str, value: Any) -> bool:
    numpys = getattr(value, "dtype", None) == "bool" and value.shape == ()
    if not (isinstance(value, bool) or numpys):
        raise InputError(f"{name} is {value!r:.80}: give True or False.")
    return bool(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    listed = isinstance(texts, list | tuple | set | frozenset)
    if not listed or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"{name} is {value!r:.80}: give a non-empty string, or a list of them.")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name} holds {text!r:.80}, which is no valid text: half of a pair.") from None
    return tuple(texts)


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


# Types and counts. What a sampler's numbers may be is its own business: csrc/sampling/sampling_options.cc.
_GENERATION: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _whole(1),
    "temperature": _number,
    "top_k": _whole(0),
    "top_p": _number,
    "min_p": _number,
    "repetition_penalty": _or_none(_number),
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "seed": _whole(0, 2**64 - 1),
    "logprobs": _or_none(_whole(0)),
    "stop": _texts,
    "ignore_eos": _flag,
    "prompt_lookup": _whole(0, LONGEST_DRAFT, " (0 is off)"),
}
_SESSION: dict[str, Callable[[str, Any], Any]] = {
    "max_length": _or_none(_whole(1)),
    "max_batch": _whole(1),
    "memory_limit": _or_none(_whole(1)),
    "threads": _whole(0, _MOST_THREADS, " (0 takes all cores)"),
    "max_pixels": _or_none(_whole(1)),
    "prefill_chunk": _whole(1),
}


@dataclass(frozen=True)
class GenerationOptions:
    """How one answer is generated.

    The default is greedy decoding: the same input gives the same answer. `temperature > 0` samples.

    Raises:
        InputError: a value of another type, or out of range.
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
    """The same seed, prompt and options draw the same answer; 0 to 2**64 - 1."""
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
        for name, check in _GENERATION.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        self.sampling()

    def sampling(self, usual_penalty: float = 1.0) -> SamplingOptions:
        """What the sampler takes; `usual_penalty` is the bundle's own repetition penalty."""
        penalty = self.repetition_penalty
        return SamplingOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=usual_penalty if penalty is None else penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            logprobs=-1 if self.logprobs is None else self.logprobs,
        )

    @classmethod
    def names(cls) -> Iterable[str]:
        """The keyword arguments that belong to these options."""
        return [f.name for f in fields(cls)]


def split_options(
    keywords: dict[str, Any], prompt_names: Collection[str] | None = None
) -> tuple[GenerationOptions, dict[str, Any]]:
    """Part `keywords` into generation options and the rest, which describes the prompt.

    Args:
        keywords: of a call.
        prompt_names: what the rest may be; anything if None.

    Raises:
        InputError: an unknown name, with the nearest known one; a bad value.
    """
    names = GenerationOptions.names()
    options = {name: value for name, value in keywords.items() if name in names}
    rest = {name: value for name, value in keywords.items() if name not in names}
    for name in rest if prompt_names is not None else ():
        if name not in prompt_names:
            near = difflib.get_close_matches(str(name), [*names, *prompt_names], n=1)
            known = f"do you mean {near[0]}?" if near else f"known are {', '.join([*names, *prompt_names])}."
            raise InputError(f"{name!r:.80} is no option: {known}")
    return GenerationOptions(**options), rest


def check_session_options(**values: Any) -> dict[str, Any]:
    """A session's numbers, as plain ints.

    Raises:
        InputError: a number of another type, or out of range.
    """
    return {name: _SESSION[name](name, value) for name, value in values.items()}
