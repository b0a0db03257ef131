"""What a command writes: to standard output, whatever that is connected to, and to files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from qwen2vl_rt.errors import InputError


def accept_any_text() -> None:
    """Write what the terminal's encoding lacks as an escape (\\xe9) instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """One JSON object, in letters where standard output can carry all of them."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    print(json.dumps(value, ensure_ascii=not encoding.lower().startswith("utf"), indent=2))


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from error


def write_json(path: Path, value: Any) -> None:
    """Write a file that holds one JSON object; errors as `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def flush() -> None:
    """Hand over what is buffered, here, where a full disk or a closed pipe still has a handler."""
    if sys.stdout is not None:  # it is None where the shell closed it
        sys.stdout.flush()


def discard() -> None:
    """Drop what is still buffered: nobody takes it, and the interpreter would try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError):
            os.dup2(nowhere, 1 if stream is sys.stdout else 2)
    os.close(nowhere)
