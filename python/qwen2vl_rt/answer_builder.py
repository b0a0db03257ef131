"""From the generation loop's result to the Answer that a caller sees."""

from __future__ import annotations

from qwen2vl_rt import _core
from qwen2vl_rt.answer import Answer, Timings, TokenLogprob, Usage
from qwen2vl_rt.boxes import parse_boxes
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor


def build_answer(
    prompt: PreparedPrompt, result: _core.Result, processor: Processor, vision_seconds: float
) -> Answer:
    """Join the prompt's pictures and the loop's tokens into one answer."""
    raw_text = processor.decode(result.token_ids, keep_special=True)
    computed = result.prompt_tokens - result.cached_tokens
    decoded = max(0, len(result.token_ids) - 1)
    return Answer(
        text=result.text,
        raw_text=raw_text,
        token_ids=tuple(result.token_ids),
        finish_reason=result.finish_reason,
        stop_string=result.stop_string,
        boxes=tuple(parse_boxes(raw_text, [visual.original_size for visual in prompt.visuals])),
        usage=Usage(
            prompt_tokens=result.prompt_tokens,
            visual_tokens=prompt.visual_tokens,
            cached_tokens=result.cached_tokens,
            answer_tokens=len(result.token_ids),
        ),
        timings=Timings(
            prepare=prompt.seconds,
            vision=vision_seconds,
            prefill=result.prefill_seconds,
            decode=result.decode_seconds,
            prefill_tokens_per_second=_rate(computed, result.prefill_seconds),
            decode_tokens_per_second=_rate(decoded, result.decode_seconds),
        ),
        logprobs=tuple(TokenLogprob(*entry) for entry in result.logprobs),
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
