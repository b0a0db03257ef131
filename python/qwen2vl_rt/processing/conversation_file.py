"""Files of conversations, one JSON object a line, whose pictures and videos lie in the file's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.messages import SOURCE_KEYS
from qwen2vl_rt.processing.pictures import is_address

Taken = TypeVar("Taken")


def read_conversations(file: Path, take: Callable[[dict[str, Any]], Taken], what: str) -> list[Taken]:
    """Return what `take` makes of each line; empty ones are passed over.

    Args:
        file: utf-8 text. A line's `messages` are in the content-list form.
        take: called with a line's object, in which pictures, videos and frames are named by absolute paths or
            addresses; may raise KeyError, TypeError or ValueError for one that lacks something.
        what: each line should be, such as "a question".

    Raises:
        InputError: the file can't be read, or a line, named by its number, is not `what`.
    """
    try:
        # Not splitlines(): a JSON string may hold U+2028 and other line ends of Unicode as they are.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            messages = [_with_paths(message, file.parent) for message in raw["messages"]]
            found.append(take({**raw, "messages": messages}))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {number}: not {what} ({error!r})") from error
    return found


def _with_paths(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The message with its pictures, videos and frames named by absolute paths or addresses."""
    if isinstance(message["content"], str):
        return message
    content = []
    for part in message["content"]:
        part = dict(part)
        for key in SOURCE_KEYS & part.keys():
            part[key] = _located(part[key], folder)
        content.append(part)
    return {**message, "content": content}


def _located(source: Any, folder: Path) -> Any:
    """A source, {"url": source} or a list of sources, with paths made absolute and addresses left alone."""
    if source is None:  # the same as a key left out
        return None
    if isinstance(source, list):
        return [_located(one, folder) for one in source]
    if isinstance(source, dict):
        return {**source, "url": _located(source["url"], folder)}
    return source if isinstance(source, str) and is_address(source) else str((folder / source).resolve())
