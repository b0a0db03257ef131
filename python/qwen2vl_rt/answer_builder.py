"""From the generation loop's result to the Answer that a caller sees."""

from __future__ import annotations

from collections.abc import Sequence

from qwen2vl_rt import _core
from qwen2vl_rt.answer import Answer, Timings, TokenLogprob, Usage
from qwen2vl_rt.boxes import parse_boxes
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor


def build_answer(
    prompt: PreparedPrompt,
    result: _core.Result,
    processor: Processor,
    stop_ids: Sequence[int],
    vision_seconds: float,
) -> Answer:
    """Join the prompt's pictures and the loop's tokens into one answer."""
    raw_text = processor.tokenizer.decode(_without_stop(result, stop_ids), skip_special_tokens=False)
    sizes = [(visual.width, visual.height) for visual in prompt.visuals]
    kinds = [visual.kind for visual in prompt.visuals]
    computed = result.prompt_tokens - result.cached_tokens
    decoded = max(0, len(result.token_ids) - 1)
    return Answer(
        text=result.text,
        raw_text=raw_text,
        token_ids=tuple(result.token_ids),
        finish_reason=result.finish_reason,
        stop_string=result.stop_string,
        boxes=tuple(parse_boxes(raw_text, sizes, kinds)),
        usage=Usage(
            prompt_tokens=result.prompt_tokens,
            visual_tokens=sum(visual.tokens(processor.pixels.merge_size) for visual in prompt.visuals),
            cached_tokens=result.cached_tokens,
            answer_tokens=len(result.token_ids),
            drafted_tokens=result.drafted_tokens,
            accepted_tokens=result.accepted_tokens,
        ),
        timings=Timings(
            load=prompt.load_seconds,
            resize=prompt.resize_seconds,
            tokenize=prompt.tokenize_seconds,
            vision=vision_seconds,
            prefill=result.prefill_seconds,
            decode=result.decode_seconds,
            prefill_tokens_per_second=_rate(computed, result.prefill_seconds),
            decode_tokens_per_second=_rate(decoded, result.decode_seconds),
        ),
        logprobs=tuple(TokenLogprob(*entry) for entry in result.logprobs),
    )


def cancelled_answer(prompt: PreparedPrompt | None, processor: Processor) -> Answer:
    """The answer to a prompt, None where not even that was ready, whose turn never came."""
    visuals = [] if prompt is None else prompt.visuals
    return Answer(
        text="",
        raw_text="",
        token_ids=(),
        finish_reason="cancelled",
        stop_string=None,
        boxes=(),
        usage=Usage(
            prompt_tokens=0 if prompt is None else len(prompt.token_ids),
            visual_tokens=sum(visual.tokens(processor.pixels.merge_size) for visual in visuals),
            cached_tokens=0,
            answer_tokens=0,
        ),
        timings=Timings(
            load=0.0 if prompt is None else prompt.load_seconds,
            resize=0.0 if prompt is None else prompt.resize_seconds,
            tokenize=0.0 if prompt is None else prompt.tokenize_seconds,
            vision=0.0,
            prefill=0.0,
            decode=0.0,
            prefill_tokens_per_second=0.0,
            decode_tokens_per_second=0.0,
        ),
    )


def _without_stop(result: _core.Result, stop_ids: Sequence[int]) -> Sequence[int]:
    ended = bool(result.token_ids) and result.token_ids[-1] in stop_ids
    return result.token_ids[:-1] if ended else result.token_ids


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
