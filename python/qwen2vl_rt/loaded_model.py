"""A bundle's loaded graphs, KV cache and compiled generation loop, for prompts that are prepared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.backends.backend import Backend
from qwen2vl_rt.bundle import GENERATION_CONFIG, PREFILL_GRAPH, Bundle
from qwen2vl_rt.content_ids import content_ids, visual_spans
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.generation_config import generation_defaults
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.processing.device_frames import DeviceFrames
from qwen2vl_rt.processing.processor import PreparedPrompt, Visual
from qwen2vl_rt.processing.tokenizer import Tokenizer
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.vision import VisionTower

# Called with a prompt's index and the text that its newest token completed.
OnText = Callable[[int, str], None]


class LoadedModel:
    """Runs the vision tower and the generation loop. One call at a time: the session sees to that.

    Args:
        bundle: the model.
        limits: what cache and buffers are made for.
        tokenizer: the bundle's, for the bytes behind each token id.
        threads: threads of one operator; 0 takes all cores.
        backend: what runs it.
    """

    def __init__(
        self,
        bundle: Bundle,
        limits: SessionLimits,
        tokenizer: Tokenizer,
        threads: int,
        backend: Backend,
    ) -> None:
        self._geometry = geometry = bundle.geometry
        self._defaults = generation_defaults(bundle.file(GENERATION_CONFIG))
        self._opened = opened = backend.open(bundle, limits, threads)
        decoder, special_ids = geometry.decoder, geometry.special_ids
        text = _core.TokenText(tokenizer.token_bytes(decoder.vocab_size), sorted(tokenizer.special_ids))
        self._generator = _core.Generator(
            opened.decoder,
            text,
            hidden_size=decoder.hidden_size,
            vocab_size=decoder.vocab_size,
            merge_size=geometry.vision.merge_size,
            image_pad=special_ids.image_pad,
            video_pad=special_ids.video_pad,
            answers_apart=PREFILL_GRAPH in bundle.files,
            least_chunk=opened.least_chunk,
        )
        self._vision = VisionTower(opened.vision, geometry.vision)

    @property
    def device_frames(self) -> DeviceFrames | None:
        """What prepares pictures that are in the GPU's memory; None on the CPU."""
        return self._opened.frames

    def close(self) -> None:
        """What is worth keeping for the next session goes to disk; the memory is freed with the object."""
        self._opened.keep()

    def generate(
        self,
        prompts: Sequence[PreparedPrompt],
        options: Sequence[GenerationOptions],
        on_text: OnText | None = None,
        cancel: _core.CancelToken | None = None,
    ) -> tuple[list[_core.Result], float]:
        """Answer prompts side by side, each by its own options.

        Returns:
            The loop's results in the prompts' order, and the seconds that the vision tower took for all.

        Raises:
            CancelledError: `cancel` was set before the last picture's turn in the vision tower.
        """
        started = time.perf_counter()
        callback = on_text and (lambda row, piece, _token: on_text(row, piece))
        read = False  # what the vision tower reads: an answer's first token comes behind it
        try:
            requests = self._requests(prompts, options, cancel)
            vision_seconds = time.perf_counter() - started
            results = self._generator.generate(requests, callback, cancel)
            read = all(result.token_ids for result in results)
            return results, vision_seconds
        finally:
            if not read:  # its memory is the next frame's as soon as the prompts are gone: see DeviceFrames
                with suppress(BackendError):
                    self.synchronize()

    def encode(
        self, visuals: Sequence[Visual], cancel: _core.CancelToken | None = None
    ) -> list[np.ndarray | _core.DeviceVisual]:
        """Visual embeddings of pictures and videos: see `VisionTower.encode`."""
        return self._vision.encode(visuals, cancel)

    def synchronize(self) -> None:
        """Wait for what is queued on a GPU."""
        if self._opened.device is not None:
            self._opened.device.synchronize()

    def _requests(
        self,
        prompts: Sequence[PreparedPrompt],
        options: Sequence[GenerationOptions],
        cancel: _core.CancelToken | None,
    ) -> list[_core.Request]:
        """Requests with the visual embeddings of everything that the cache does not hold already."""
        # Only the first prompt of a call may continue what the cache holds.
        first = prompts[0]
        ids = content_ids(first, self._geometry)
        cached = [self._generator.cached_prefix(first.token_ids, first.grids, ids)]
        cached += [0] * (len(prompts) - 1)
        new = [
            (row, index)
            for row, prompt in enumerate(prompts)
            for index, (_start, end) in enumerate(visual_spans(prompt, self._geometry))
            if end > cached[row]
        ]
        embeddings = self.encode([prompts[row].visuals[index] for row, index in new], cancel)
        visuals: list[list[np.ndarray | _core.DeviceVisual | None]] = [
            [None] * len(prompt.visuals) for prompt in prompts
        ]
        for (row, index), value in zip(new, embeddings, strict=True):
            visuals[row][index] = value
        return [self._request(*parts) for parts in zip(prompts, options, visuals, strict=True)]

    def _request(
        self,
        prompt: PreparedPrompt,
        option: GenerationOptions,
        visuals: Sequence[np.ndarray | _core.DeviceVisual | None],
    ) -> _core.Request:
        return _core.Request(
            prompt.token_ids,
            grids=prompt.grids,
            embeddings=visuals,
            content_ids=content_ids(prompt, self._geometry),
            sampling=option.sampling(self._defaults.get("repetition_penalty", 1.0)),
            max_new_tokens=option.max_new_tokens,
            stop_ids=() if option.ignore_eos else self._geometry.special_ids.eos,
            stop_strings=option.stop,
            prompt_lookup=option.prompt_lookup,
        )
