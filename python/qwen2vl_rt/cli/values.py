"""Values of command-line options that several commands take, checked before anything is loaded."""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def count(text: str, least: int = 1) -> int:
    """A whole number, `least` or more."""
    if text.isdecimal() and int(text) >= least:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")


def memory_size(text: str) -> int:
    """A memory size such as `900M` or `6.5G`, in bytes."""
    digits, unit = (text[:-1], UNITS[text[-1].lower()]) if text[-1:].lower() in UNITS else (text, 1)
    try:
        return int(float(digits) * unit)
    except (ValueError, OverflowError):  # the latter for inf
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 900M or 6.5G") from None


def output_file(text: str) -> Path:
    """A file to be written at the end of a run: what can't be written is refused at its begin."""
    path = Path(text)
    folder = path.parent
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file")
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: there is no folder {str(folder)!r}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: permission denied")
    return path


def picture_file(text: str) -> Path:
    """An `output_file` for a picture: its extension names a format that pictures can be written in."""
    from PIL import Image

    path = output_file(text)
    try:  # what Pillow can write, and in which modes, is found out by writing
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: {path.suffix!r} names no format for pictures; write .png or .jpg"
        ) from None
    return path
