"""The compiled loop over a bundle, on the cpu backend or on a device's decoder, and prompts for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.backends.cpu.executors import CpuDecoder
from qwen2vl_rt.bundle import PREFILL_GRAPH, Bundle
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import embedding_table


def cpu_loop(bundle: Bundle, limits: SessionLimits) -> _core.Generator:
    """The cpu backend's, two threads."""
    decoder = bundle.geometry.decoder
    cache = _core.KVCache(
        decoder.layers, limits.max_batch, decoder.kv_heads, limits.max_length, decoder.head_dim
    )
    table = embedding_table(bundle)
    rope = _core.RopeTable(decoder.head_dim, decoder.rope_theta, decoder.mrope_section)
    executor = CpuDecoder(bundle, cache, 2)
    return decoder_loop(bundle, _core.HostDecoder(executor, cache, table, rope, limits.prefill_chunk))


def decoder_loop(bundle: Bundle, steps: _core.Decoder) -> _core.Generator:
    """That of any decoder."""
    geometry = bundle.geometry
    return _core.Generator(
        steps,
        _core.TokenText([b"%d " % i for i in range(geometry.decoder.vocab_size)]),
        hidden_size=geometry.decoder.hidden_size,
        vocab_size=geometry.decoder.vocab_size,
        merge_size=geometry.vision.merge_size,
        image_pad=geometry.special_ids.image_pad,
        video_pad=geometry.special_ids.video_pad,
        answers_apart=PREFILL_GRAPH in bundle.files,
    )


def requests(bundle: Bundle, **options: Any) -> list[_core.Request]:
    """Three prompts: 2 + 6 (a picture) + 11 tokens, 3, 13; answers of 20, 11 and 5."""
    pad, hidden = bundle.geometry.special_ids.image_pad, bundle.geometry.decoder.hidden_size
    picture = np.random.default_rng(0).normal(size=(6, hidden)).astype(np.float32)
    return [
        _core.Request(
            [7, 8] + [pad] * 6 + list(range(20, 31)),
            grids=[(1, 4, 6)],
            embeddings=[picture],
            content_ids=np.arange(19, dtype=np.uint64),
            max_new_tokens=20,
            **options,
        ),
        _core.Request([40, 41, 42], max_new_tokens=11, **options),
        _core.Request(list(range(100, 113)), max_new_tokens=5, **options),
    ]


def token_ids(results: list[_core.Result]) -> list[list[int]]:
    """Each answer's."""
    return [result.token_ids for result in results]
