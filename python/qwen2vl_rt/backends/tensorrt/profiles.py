"""Optimization profiles: the ranges of shapes that an engine is built for, and the one it is tuned for.

No range is a single size in T or K: a decode profile with T fixed at 1 makes the builder store every weight
twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen2vl_rt.geometry import DecoderGeometry, VisionGeometry
from qwen2vl_rt.graph_format import (
    COS,
    INPUTS_EMBEDS,
    LOGIT_ROWS,
    PAST_LENGTH,
    PATCHES,
    SIN,
    cache_tensors,
)
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.vision import PATCHES_PER_CALL

Shape = tuple[int, ...]

SHORTEST = 2  # positions of a cache: it holds the most tokens of every profile, which are more than one
USUAL_PATCHES = 1024  # of a 448x448 picture, the size to tune for
FRAMES = 8  # small frames of a video that share a call, at most


@dataclass(frozen=True)
class Profile:
    """Shapes of every input: the smallest, the one to tune for, the largest."""

    name: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]

    @property
    def largest(self) -> dict[str, Shape]:
        """The largest shape of every input."""
        return {name: largest for name, (_, _, largest) in self.shapes.items()}


def decoder_profiles(
    geometry: DecoderGeometry, limits: SessionLimits, names: tuple[str, ...]
) -> list[Profile]:
    """Profiles of a decoder: "prefill" (chunks of one prompt) and "decode" (a token for each row).

    B is 1 in prefill, since every prompt is prefilled alone, and up to max_batch in decode.
    """
    chunk = max(SHORTEST, min(limits.prefill_chunk, limits.max_length))
    ranges = {
        "prefill": ((1, 1, 1), (1, chunk, chunk)),
        "decode": ((1, limits.max_batch, limits.max_batch), (1, 1, 2)),
    }
    return [_decoder_profile(geometry, limits.max_length, name, *ranges[name]) for name in names]


def _decoder_profile(
    geometry: DecoderGeometry, capacity: int, name: str, rows: Shape, tokens: Shape
) -> Profile:
    half = geometry.head_dim // 2
    sizes = list(zip(rows, tokens, (1, 1, 2), strict=True))  # B, T, K
    shapes = {
        INPUTS_EMBEDS: tuple((b, t, geometry.hidden_size) for b, t, _ in sizes),
        COS: tuple((b, t, half) for b, t, _ in sizes),
        SIN: tuple((b, t, half) for b, t, _ in sizes),
        PAST_LENGTH: tuple((b,) for b, _, _ in sizes),
        LOGIT_ROWS: tuple((b, k) for b, _, k in sizes),
    }
    cache = tuple((b, geometry.kv_heads, capacity, geometry.head_dim) for b, _, _ in sizes)
    return Profile(name, shapes | {names.past: cache for names in cache_tensors(geometry.layers)})


def vision_profiles(geometry: VisionGeometry, limits: SessionLimits) -> list[Profile]:
    """Profiles of the vision tower: "picture" (one of any size up to max_pixels) and "frames" (several small
    ones of one size).

    Both are bounded by what a session sends in one call (`vision.PATCHES_PER_CALL`), so that neither plans
    for many large pictures at once.
    """
    merged = geometry.merge_size**2
    largest = max(limits.max_pixels // geometry.patch_size**2 // merged, 1) * merged
    usual = min(USUAL_PATCHES, largest)
    small = min(PATCHES_PER_CALL // FRAMES, largest)
    return [
        _vision_profile(geometry, "picture", (1, 1, 1), (merged, usual, largest)),
        _vision_profile(geometry, "frames", (1, FRAMES, FRAMES), (merged, small, small)),
    ]


def _vision_profile(geometry: VisionGeometry, name: str, pictures: Shape, patches: Shape) -> Profile:
    sizes = list(zip(pictures, patches, strict=True))  # N, P
    table = tuple((n, p, geometry.head_dim // 2) for n, p in sizes)
    return Profile(
        name,
        {PATCHES: tuple((n, p, geometry.patch_values) for n, p in sizes), COS: table, SIN: table},
    )
