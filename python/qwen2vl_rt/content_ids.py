"""What stands at each position of a prompt, as one number each, so that a cached prefix is recognized."""

from __future__ import annotations

import numpy as np

from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.processing.processor import PreparedPrompt

# Those of visual positions have the top bit set, so they never equal a token id.
VISUAL_BIT = np.uint64(1 << 63)


def content_ids(prompt: PreparedPrompt, geometry: Geometry) -> np.ndarray:
    """Content ids of a prompt's positions, uint64 [T].

    A text position's is its token id. A visual position's comes from the digest of its picture's patches and
    grid plus its place in the picture, so the same pad token of another picture never matches. A prefix of
    equal ids has equal tokens, pictures and M-RoPE positions, hence equal entries in the KV cache.
    """
    ids = prompt.token_ids.astype(np.uint64)
    for visual, (start, end) in zip(prompt.visuals, visual_spans(prompt, geometry), strict=True):
        base = np.frombuffer(visual.digest[:8], np.uint64)[0]
        ids[start:end] = (base + np.arange(end - start, dtype=np.uint64)) | VISUAL_BIT
    return ids


def visual_spans(prompt: PreparedPrompt, geometry: Geometry) -> list[tuple[int, int]]:
    """The positions [start, end) of each picture or video, in order of appearance."""
    ids = geometry.special_ids
    pads = np.flatnonzero(np.isin(prompt.token_ids, (ids.image_pad, ids.video_pad)))
    spans, taken = [], 0
    for visual in prompt.visuals:
        start, count = int(pads[taken]), visual.tokens(geometry.vision.merge_size)
        spans.append((start, start + count))
        taken += count
    return spans
