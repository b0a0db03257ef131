"""The self-check's inputs, computed from a seed, and what the cpu backend makes of them.

Steps of the decoder over a cache of several rows, and pictures for the vision tower. They are such that a
position too many or too few shows: some rows are a few tokens long, so that one position is much of what they
see, and the executor fills the cache behind every row's end with large numbers before it begins. The largest
are as large as what engines are tuned for: a whole chunk of a prompt, a usual picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.backends.tensorrt.profiles import USUAL_PATCHES
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.geometry import VisionGeometry
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import embedding_table

SEED = 20
LARGEST = "largest picture"  # whose features must be finite; the others are compared
VISION, PREFILL, CHUNK, DECODE, REPLAY, BATCH, BATCH_REPLAY = (
    "vision features",
    "prefill",
    "chunked prefill",
    "decode against a warm cache",
    "replayed decode",
    "batch of different lengths",
    "replayed batch",
)


@dataclass(frozen=True)
class Step:
    """One run of the decoder; its logits are those of the last token of each row."""

    name: str
    first_row: int
    past: tuple[int, ...]
    """Positions that each row holds before it."""
    tokens: int
    prompt: bool
    replayed: bool = False
    """Run as the replay of a recording, which was made after the step before."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self.past)


@dataclass(frozen=True)
class StepInputs:
    """A step's inputs, float32 arrays whose values the engine's number format holds exactly."""

    inputs_embeds: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    past_length: np.ndarray
    logit_rows: np.ndarray


def check_steps(limits: SessionLimits) -> list[Step]:
    """A prompt in two chunks and two tokens after it: short, long, then filling a chunk. Other rows; two
    tokens for all rows.

    `limits`: a row's length, rows and chunk of the engines; long prompts are cut to what they hold.
    """

    def cut(first: int, second: int) -> tuple[int, int]:
        first = max(1, min(first, limits.prefill_chunk, limits.max_length // 2 - 1))
        return first, max(1, min(second, limits.prefill_chunk, limits.max_length - first - 3))

    steps = []
    for first, second in dict.fromkeys(
        cut(*chunks) for chunks in ((2, 2), (150, 41), (limits.prefill_chunk, 41))
    ):
        length = first + second
        steps += [
            Step(PREFILL, 0, (0,), first, True),
            Step(CHUNK, 0, (first,), second, True),
            Step(DECODE, 0, (length,), 1, False),
            Step(REPLAY, 0, (length + 1,), 1, False, replayed=True),
        ]
    others = [1, min(18, first), min(67, first)][: limits.max_batch - 1]
    steps += [Step(PREFILL, row, (0,), tokens, True) for row, tokens in enumerate(others, 1)]
    if others:
        past = (length + 1, *others)  # where the last one was: behind it, row 0 is not filled
        steps.append(Step(BATCH, 0, past, 1, False))
        steps.append(Step(BATCH_REPLAY, 0, tuple(one + 1 for one in past), 1, False, replayed=True))
    return [step for step in steps if max(step.past) + step.tokens <= limits.max_length]  # of the tiniest


def picture_sizes(limits: SessionLimits, patch_size: int, merge: int) -> list[tuple[int, int, int]]:
    """Pictures for the vision tower: how many, height and width in patches. One, two smaller, one of usual
    size.
    """
    most = max(1, limits.max_pixels // patch_size**2 // merge**2)  # merged patches
    high = min(6, math.isqrt(most))
    wide = min(9, most // high)
    smaller = max(1, high // 2), max(1, wide // 2)
    sizes = [(1, high, wide), (2, *smaller), _squarish(min(most, USUAL_PATCHES // merge**2))]
    return [(count, high * merge, wide * merge) for count, high, wide in dict.fromkeys(sizes)]


def _squarish(most: int) -> tuple[int, int, int]:
    """A picture of up to `most` merged patches."""
    high = math.isqrt(most)
    return 1, high, most // high


def step_inputs(bundle: Bundle, steps: list[Step], number_format: np.dtype) -> Iterator[StepInputs]:
    """Inputs of each step: rows of the embedding table, and positions that differ on the three axes."""
    decoder, rng = bundle.geometry.decoder, np.random.default_rng(SEED)
    table = embedding_table(bundle)

    def rounded(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.astype(number_format).astype(np.float32))

    for step in steps:
        shape = (step.rows, step.tokens)
        ids = rng.integers(0, decoder.vocab_size, shape)
        embeddings = np.stack([table.gather(row) for row in ids])
        order = np.array(step.past)[:, None] + np.arange(step.tokens)  # [B, T]
        positions = np.stack([order, order + order % 3, order + order % 5])  # [3, B, T]
        tables = [
            _core.rope_table(positions[:, row], decoder.head_dim, decoder.rope_theta, decoder.mrope_section)
            for row in range(step.rows)
        ]
        yield StepInputs(
            rounded(embeddings),
            *(rounded(np.stack(part)) for part in zip(*tables, strict=True)),
            np.array(step.past, np.int64),
            np.full((step.rows, 1), step.tokens - 1, np.int64),
        )


def pictures(
    bundle: Bundle, limits: SessionLimits, number_format: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Patches [N, P, values], cos and sin [P, head_dim / 2] of the vision tower, float32."""
    vision = bundle.geometry.vision
    return _pictures(vision, picture_sizes(limits, vision.patch_size, vision.merge_size), number_format)


def largest_picture(
    bundle: Bundle, limits: SessionLimits, number_format: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest of `limits`, as `pictures`: nothing is expected of it but finite numbers."""
    vision = bundle.geometry.vision
    _, high, wide = _squarish(max(1, limits.max_pixels // (vision.patch_size * vision.merge_size) ** 2))
    sizes = [(1, high * vision.merge_size, wide * vision.merge_size)]
    return next(_pictures(vision, sizes, number_format))


def _pictures(
    vision: VisionGeometry, sizes: list[tuple[int, int, int]], number_format: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(SEED)
    for count, high, wide in sizes:
        patches = rng.standard_normal((count, high * wide, vision.patch_values), dtype=np.float32)
        tables = _core.vision_rope_table(high, wide, vision.head_dim, vision.merge_size, vision.rope_theta)
        yield tuple(array.astype(number_format).astype(np.float32) for array in (patches, *tables))


@dataclass
class _CpuStep:
    """A step as `backends.cpu.executors.CpuDecoder` takes it, over buffers that keep their addresses."""

    first_row: int
    rows: int
    tokens: int
    prompt: bool
    inputs_embeds: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    past_length: np.ndarray
    logit_rows: np.ndarray
    logits: np.ndarray
    logit_row_count: int = 1


def expected_values(
    bundle: Bundle, limits: SessionLimits, number_format: np.dtype, threads: int
) -> dict[str, list[np.ndarray]]:
    """What the cpu backend computes, by comparison: logits [B, vocab] of each step, features [N, P', hidden].

    The model is loaded for it and let go.
    """
    from qwen2vl_rt.backends.cpu.executors import CpuDecoder, CpuVision

    vision = CpuVision(bundle, threads)
    expected = {VISION: [vision.encode(*one) for one in pictures(bundle, limits, number_format)]}
    del vision
    decoder, steps = bundle.geometry.decoder, check_steps(limits)
    rows = max(step.rows for step in steps)
    length = max(max(step.past) + step.tokens for step in steps)
    cache = _core.KVCache(decoder.layers, rows, decoder.kv_heads, length, decoder.head_dim)
    executor = CpuDecoder(bundle, cache, threads)
    arrays = [
        vars(inputs) | {"logits": np.zeros((step.rows, 1, decoder.vocab_size), np.float32)}
        for step, inputs in zip(steps, step_inputs(bundle, steps, number_format), strict=True)
    ]
    buffers = {
        name: np.empty(max(one[name].size for one in arrays), array.dtype)
        for name, array in arrays[0].items()
    }
    for step, one in zip(steps, arrays, strict=True):
        views = {name: buffers[name][: array.size].reshape(array.shape) for name, array in one.items()}
        for name, array in one.items():
            views[name][...] = array
        executor.run(_CpuStep(step.first_row, step.rows, step.tokens, step.prompt, **views))
        expected.setdefault(step.name, []).append(views["logits"][:, 0].copy())
    return expected
