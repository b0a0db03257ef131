"""Processor: a conversation with pictures and videos to what the model takes."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen2vl_rt._core import CancelToken
from qwen2vl_rt.bundle import PREPROCESSOR_CONFIG, TOKENIZER
from qwen2vl_rt.calls import raise_if_cancelled
from qwen2vl_rt.errors import BundleError, InputError, PromptTooLongError
from qwen2vl_rt.processing import chat_template as templates
from qwen2vl_rt.processing.device_frames import DeviceFrames
from qwen2vl_rt.processing.messages import Conversation, VisualItem, conversation
from qwen2vl_rt.processing.options import FIELDS, VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.tokenizer import Tokenizer
from qwen2vl_rt.processing.visuals import Visual, prepare_picture, prepare_video


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """What the model takes, on the host.

    Attributes:
        token_ids: int32 [T], with one pad token for every visual token.
        visuals: the pictures and videos in order of appearance.
        text: the rendered prompt, before pads were expanded.
        load_seconds: reading and decoding pictures and videos.
        resize_seconds: resizing, normalising and cutting into patches.
        tokenize_seconds: template and tokenizer.
    """

    token_ids: np.ndarray
    visuals: list[Visual]
    text: str = field(repr=False)
    load_seconds: float = 0.0
    resize_seconds: float = 0.0
    tokenize_seconds: float = 0.0

    @property
    def grids(self) -> np.ndarray:
        """int64 [visuals, 3]: grid_thw of each visual, in order of appearance."""
        return np.asarray([visual.grid_thw for visual in self.visuals], dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class TokenizedPrompt:
    """A prompt whose pictures and videos are still to be loaded. It shares no lists or dicts with the caller.

    Attributes:
        ids: int32 [t], with one pad token for every picture and video.
        places: int64 [visuals], where in ids each has its pad.
        visuals: the pictures and videos in order of appearance, with all their options.
        text: the rendered prompt.
        max_tokens: the most that the prompt may become, None without a limit.
        seconds: what it took.
    """

    ids: np.ndarray
    places: np.ndarray
    visuals: list[VisualItem]
    text: str = field(repr=False)
    max_tokens: int | None
    seconds: float

    @property
    def named_only(self) -> bool:
        """Whether all sources are paths, addresses or bytes, not objects that the caller may change."""
        return all(isinstance(item.source, str | bytes | os.PathLike) for item in self.visuals)


class Processor:
    """Prepares prompts for one bundle. Usable from several threads at once.

    folder: the bundle (tokenizer.json, preprocessor_config.json, and a chat template).
    geometry: the bundle's Geometry, or anything with its `vision` and `special_ids`.
    max_pixels: the largest picture after resizing that memory is planned for; the bundle's own if None.
    Raises BundleError for files that are missing, damaged or don't belong together.
    """

    def __init__(self, folder: str | Path, geometry: Any, max_pixels: int | None = None):
        folder = Path(folder)
        self.tokenizer = Tokenizer(folder / TOKENIZER)
        self.pixels = PixelSettings.from_folder(folder)
        if max_pixels is not None:
            self.pixels = self.pixels.limited(max_pixels)
        self.template = templates.find_template(folder)
        # Set by a session that computes on a GPU.
        self.device_frames: DeviceFrames | None = None
        if problem := self.pixels.problem(geometry.vision):
            raise BundleError(f"{folder}: {PREPROCESSOR_CONFIG} {problem}")
        self._pads = {"image": geometry.special_ids.image_pad, "video": geometry.special_ids.video_pad}
        for kind, pad in self._pads.items():
            if self.tokenizer.token_of(pad) is None:
                raise BundleError(
                    f"{folder}: {TOKENIZER} has no token {pad}, which the model takes for {kind} pads"
                )

    def prepare(self, messages: str | Sequence[Mapping[str, Any]], **keywords: Any) -> PreparedPrompt:
        """Renders, tokenizes, loads and resizes: `load` after `tokenize`, whose arguments it takes."""
        return self.load(self.tokenize(messages, **keywords))

    def tokenize(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        images: Any = (),
        videos: Any = (),
        system: str | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
        max_tokens: int | None = None,
        **options: Any,
    ) -> TokenizedPrompt:
        """Renders and tokenizes. It is cheap, and a mistake here should not cost a video's decoding.

        messages: a prompt, or a list of messages (see messages.conversation for the accepted forms).
        images, videos: pictures and videos of a plain prompt, or of items without a source.
        system: a system message to put first (the template adds its default where there is none).
        chat_template: a jinja2 template to use instead of the bundle's.
        add_generation_prompt: end with the tokens that open an answer.
        add_vision_id: number the pictures and videos ("Picture 1: ") in the prompt.
        max_tokens: refuse a prompt of more tokens, before memory is taken for the picture that is too much.
        options: VisualOptions' fields, for every picture and video that has no options of its own.

        Raises InputError (PictureError, VideoError, PromptTooLongError) naming the item. A text that contains
        the chat's or the pictures' own special tokens, such as <|im_end|> or <|image_pad|>, is refused: it
        would end a message or shift pictures. The notation for objects and boxes is allowed.
        """
        talk = conversation(messages, images, videos, system)
        defaults = VisualOptions.from_mapping(options)
        started = time.perf_counter()
        text = self._render(talk, chat_template, add_generation_prompt, add_vision_id)
        ids = self.tokenizer.encode(text)
        places = self._places(ids, talk)
        if max_tokens is not None and len(ids) > max_tokens:
            raise PromptTooLongError(f"the text alone has {len(ids)} tokens; there is room for {max_tokens}")
        visuals = [replace(item, options=item.options.over(defaults)) for item in talk.visuals]
        return TokenizedPrompt(ids, places, visuals, text, max_tokens, time.perf_counter() - started)

    def load(self, prompt: TokenizedPrompt, cancel: CancelToken | None = None) -> PreparedPrompt:
        """Loads and resizes the pictures and videos; `cancel` is looked at between them and their frames.

        Raises PictureError, VideoError, PromptTooLongError naming the item; CancelledError.
        """
        started = time.perf_counter()
        visuals, load_seconds = [], 0.0
        length = len(prompt.ids)  # of the prompt, where each picture still to come counts as one token
        for item in prompt.visuals:
            raise_if_cancelled(cancel)
            room = None if prompt.max_tokens is None else prompt.max_tokens - length + 1
            arguments = (item.source, item.options, self.pixels, item.name, room)
            if item.kind == "image":
                visual, seconds = prepare_picture(*arguments, self.device_frames, cancel)
            else:
                visual, seconds = prepare_video(*arguments, cancel)
            visuals.append(visual)
            length += visual.tokens(self.pixels.merge_size) - 1
            load_seconds += seconds
        repeats = np.ones(len(prompt.ids), dtype=np.int64)
        repeats[prompt.places] = [visual.tokens(self.pixels.merge_size) for visual in visuals]
        return PreparedPrompt(
            token_ids=np.repeat(prompt.ids, repeats),
            visuals=visuals,
            text=prompt.text,
            load_seconds=load_seconds,
            resize_seconds=time.perf_counter() - started - load_seconds,
            tokenize_seconds=prompt.seconds,
        )

    def _render(self, talk: Conversation, template: str | None, generation: bool, vision_id: bool) -> str:
        for name, text in talk.texts():
            for token in self.tokenizer.reserved:
                if token in text:
                    raise InputError(
                        f"{name}: the text contains {token}, which structures the conversation for the "
                        "model; remove it (pictures and videos are passed as items, not as text)"
                    )
        source = self.template if template is None else template
        if source is None:
            raise InputError("the bundle has no chat template: pass chat_template=")
        return templates.compiled(source).render(talk.messages, generation, vision_id)

    def _places(self, ids: np.ndarray, talk: Conversation) -> np.ndarray:
        """Positions in ids of the pads, one for each visual, checked against the conversation."""
        places = np.flatnonzero((ids == self._pads["image"]) | (ids == self._pads["video"]))
        found = ["image" if id_ == self._pads["image"] else "video" for id_ in ids[places]]
        wanted = [item.kind for item in talk.visuals]
        if found != wanted:
            raise InputError(
                f"the chat template renders {len(found)} visual places ({', '.join(found[:8])}) for "
                f"{len(wanted)} pictures and videos ({', '.join(wanted[:8])}): each must come once, in order"
            )
        return places


#: What a caller may say about a prompt beside its text.
PROMPT_KEYWORDS = (
    *(
        name
        for name, parameter in inspect.signature(Processor.tokenize).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "max_tokens"
    ),
    *FIELDS,
)
