"""Command-line options that build a session, shared by every command that loads one."""

from __future__ import annotations

import argparse
from typing import Any

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(text: str) -> int:
    """A memory size such as `900M` or `6.5G`, in bytes."""
    digits, unit = (text[:-1], UNITS[text[-1].lower()]) if text[-1:].lower() in UNITS else (text, 1)
    try:
        return int(float(digits) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 900M or 6.5G") from None


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `Session` takes."""
    group = parser.add_argument_group("session")
    group.add_argument("--backend", default="auto", help="auto (default), cpu, cuda or tensorrt")
    group.add_argument("--max-length", type=int, metavar="N", help="positions of the KV cache")
    group.add_argument("--max-batch", type=int, default=1, metavar="N", help="answers generated side by side")
    group.add_argument("--memory-limit", type=size, metavar="SIZE", help="refuse to use more, such as 6.5G")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all cores")


def session_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as `Session` keyword arguments."""
    names = ("backend", "max_length", "max_batch", "memory_limit", "threads")
    return {name: getattr(options, name) for name in names}
