"""Files of conversations, one JSON object a line, whose pictures and frames lie in the file's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qwen2vl_rt.errors import InputError

Taken = TypeVar("Taken")


def read_conversations(file: Path, take: Callable[[dict[str, Any]], Taken], what: str) -> list[Taken]:
    """Return what `take` makes of each line; empty ones are passed over.

    Args:
        file: utf-8 text. A line's `messages` are in the content-list form.
        take: called with a line's object, in which the names of pictures and frames are absolute paths; may
            raise KeyError or TypeError for one that lacks something.
        what: each line should be, such as "a question".

    Raises:
        InputError: the file can't be read, or a line, named by its number, is not `what`.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
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
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}, line {number}: not {what} ({error!r})") from error
    return found


def _with_paths(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The message with its pictures' and frames' names made absolute."""
    if isinstance(message["content"], str):
        return message
    content = []
    for part in message["content"]:
        part = dict(part)
        if "image" in part:
            part["image"] = str((folder / part["image"]).resolve())
        if "video" in part:
            part["video"] = [str((folder / frame).resolve()) for frame in part["video"]]
        content.append(part)
    return {**message, "content": content}
