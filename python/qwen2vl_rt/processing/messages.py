"""Conversations in the forms users have them, brought to one form.

Accepted: a plain prompt with pictures and videos beside it; lists of messages whose content is a string or a
list of items in transformers' form ({"type": "image", "image": source}) or OpenAI's ({"type": "image_url",
"image_url": {"url": address}}).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.options import FIELDS, PICTURE_FIELDS, VisualOptions

ROLES = ("system", "user", "assistant")

# An item's kind by its "type", and where its source may stand.
_KINDS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}
_SOURCE_KEYS = {
    "image": ("image", "image_url", "url", "path"),
    "video": ("video", "video_url", "url", "path"),
}
#: All keys under which an item's source may stand.
SOURCE_KEYS = frozenset(key for keys in _SOURCE_KEYS.values() for key in keys)
_MOST_ITEMS = 100_000


@dataclass(frozen=True)
class VisualItem:
    """A picture or video of a conversation, not loaded yet.

    Attributes:
        kind: "image" or "video".
        source: what load_picture or open_video takes.
        options: the item's own options.
        name: how error messages call it, e.g. "messages[0].content[1]".
    """

    kind: str
    source: Any
    options: VisualOptions
    name: str


@dataclass(frozen=True)
class Conversation:
    """Messages ready for a chat template, and their pictures and videos in order of appearance.

    Attributes:
        messages: dicts of "role" and "content"; content is a str or a list of {"type": "text", "text": str},
            {"type": "image", ...} and {"type": "video", ...}.
        names: how error messages call each message.
        visuals: one entry per image and video item.
    """

    messages: list[dict[str, Any]]
    names: list[str]
    visuals: list[VisualItem]

    def texts(self) -> Iterable[tuple[str, str]]:
        """(name, text) of every run of text that the template will join, for checks."""
        for name, message in zip(self.names, self.messages, strict=True):
            content = message["content"]
            if isinstance(content, str):
                yield name, content
                continue
            run = ""
            for item in content:
                if item["type"] == "text":
                    run += item["text"]
                elif run:
                    yield name, run
                    run = ""
            if run:
                yield name, run


def conversation(
    messages: str | Sequence[Mapping[str, Any]],
    images: Any = (),
    videos: Any = (),
    system: str | None = None,
) -> Conversation:
    """Brings a prompt or a list of messages to one form.

    messages: a prompt (str), or a list of messages.
    images, videos: with a prompt, its pictures and videos, which come before the text, pictures first; each
        a source or a dict {"image": source, option: value, ...}. With messages, the sources of the items
        that name none ({"type": "image"}), in order.
    system: text of a system message to put first.
    Raises InputError naming the item.
    """
    pictures = _sources(images, "image")
    films = _sources(videos, "video")
    names = ["prompt"]
    if isinstance(messages, str):
        content: Any = _text(messages, "prompt")
        if pictures or films:
            content = [{"type": "image"} for _ in pictures] + [{"type": "video"} for _ in films]
            content.append({"type": "text", "text": messages})
        messages = [{"role": "user", "content": content}]
    elif (
        isinstance(messages, Mapping)
        or not isinstance(messages, Sequence)
        or isinstance(messages, (bytes, bytearray))
    ):
        raise InputError(f"messages must be a str or a list of messages, not {type(messages).__name__}")
    else:
        names = [f"messages[{index}]" for index in range(len(messages))]
    if not messages:
        raise InputError("messages is empty: give at least one message")
    if len(messages) > _MOST_ITEMS:
        raise InputError(f"{len(messages)} messages; the limit is {_MOST_ITEMS}")
    if system is not None:
        if not isinstance(system, str):
            raise InputError(f"system must be a str, not {type(system).__name__}")
        if isinstance(messages[0], Mapping) and messages[0].get("role") == "system":
            raise InputError(
                "system was given beside messages that begin with a system message: give one of them"
            )

    reader = _Reader(pictures, films)
    normal = [reader.message(message, name) for message, name in zip(messages, names, strict=True)]
    reader.finish()
    if system is not None:
        normal.insert(0, {"role": "system", "content": _text(system, "system")})
        names.insert(0, "system")
    return Conversation(normal, names, reader.visuals)


def _sources(given: Any, kind: str) -> list[VisualItem]:
    """images= or videos= as items; one source alone is a list of one, where that cannot be misunderstood."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        given = [given]
    items = []
    for index, source in enumerate(given):
        name = f"{kind}s[{index}]"
        if isinstance(source, Mapping):
            items.append(_visual_item(source, kind, name))
        else:
            items.append(VisualItem(kind, source, VisualOptions(), name))
    return items


class _Reader:
    def __init__(self, pictures: list[VisualItem], films: list[VisualItem]):
        self.visuals: list[VisualItem] = []
        self._waiting = {"image": pictures, "video": films}
        self._taken = {"image": 0, "video": 0}

    def message(self, message: Any, name: str) -> dict[str, Any]:
        if not isinstance(message, Mapping):
            raise InputError(f"{name} must be a dict with role and content, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise InputError(f"{name}: role {role!r:.80} is none of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            return {"role": role, "content": _text(content, f"{name}.content")}
        if not isinstance(content, (list, tuple)):
            raise InputError(f"{name}.content must be a str or a list of items, not {type(content).__name__}")
        if len(content) > _MOST_ITEMS:
            raise InputError(f"{name}.content has {len(content)} items; the limit is {_MOST_ITEMS}")
        items = [self._item(item, f"{name}.content[{index}]") for index, item in enumerate(content)]
        return {"role": role, "content": items}

    def _item(self, item: Any, name: str) -> dict[str, Any]:
        if not isinstance(item, Mapping):
            raise InputError(f"{name} must be a dict with a type, not {type(item).__name__}")
        kind = _kind(item, name)
        if kind == "text":
            return {"type": "text", "text": _text(item.get("text"), f"{name}.text")}
        if any(key in item for key in _SOURCE_KEYS[kind]):
            visual = _visual_item(item, kind, name)
        else:
            visual = self._next_waiting(item, kind, name)
        self.visuals.append(visual)
        # Templates ask for the type or for a key of the same name; neither may print the source.
        return {"type": kind, kind: visual.name}

    def _next_waiting(self, item: Mapping[str, Any], kind: str, name: str) -> VisualItem:
        waiting, taken = self._waiting[kind], self._taken[kind]
        if taken == len(waiting):
            raise InputError(f'{name} names no {kind}: add "{kind}": source, or pass {kind}s=[...]')
        self._taken[kind] += 1
        given = waiting[taken]
        options = _options(item, kind, name, ("type",))
        return VisualItem(kind, given.source, options.over(given.options), given.name)

    def finish(self) -> None:
        for kind, waiting in self._waiting.items():
            left = len(waiting) - self._taken[kind]
            if left:
                raise InputError(
                    f"{left} of {len(waiting)} {kind}s= have no place: in messages they are taken by "
                    f'items {{"type": "{kind}"}} in order; a plain prompt takes them all'
                )


def _kind(item: Mapping[str, Any], name: str) -> str:
    """What an item is: by its type or, as in the model's own utilities, by the key that it has."""
    type_ = item.get("type")
    if type_ is None:
        for key, kind in (*_KINDS.items(), ("text", "text")):
            if key in item:
                return kind
    if isinstance(type_, str) and type_ == "text":
        return "text"
    if isinstance(type_, str) and type_ in _KINDS:
        return _KINDS[type_]
    raise InputError(f"{name}: unknown type {type_!r:.80}; the types are text, {', '.join(_KINDS)}")


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name} must be a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds a lone surrogate at position {error.start}: it is no valid text"
        ) from None
    return text


def _visual_item(item: Mapping[str, Any], kind: str, name: str) -> VisualItem:
    keys = [key for key in _SOURCE_KEYS[kind] if item.get(key) is not None]
    if len(keys) != 1:
        found = " and ".join(keys) if keys else "none"
        raise InputError(
            f"{name} must name its {kind} under one of {', '.join(_SOURCE_KEYS[kind])}; found {found}"
        )
    source = item[keys[0]]
    if keys[0].endswith("_url") and isinstance(source, Mapping):
        unknown = [key for key in source if key not in ("url", "detail")]
        if unknown or "url" not in source:
            raise InputError(
                f'{name}.{keys[0]} must be {{"url": address}}, not keys {sorted(map(str, source))!r:.80}'
            )
        source = source["url"]
    return VisualItem(kind, source, _options(item, kind, name, ("type", keys[0])), name)


def _options(item: Mapping[str, Any], kind: str, name: str, known: tuple[str, ...]) -> VisualOptions:
    values = {key: value for key, value in item.items() if key not in known and value is not None}
    if kind == "image":
        for key in values:
            if key in FIELDS and key not in PICTURE_FIELDS:
                raise InputError(f"{name}: {key} is an option of videos, not of pictures")
    try:
        return VisualOptions.from_mapping(values)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
