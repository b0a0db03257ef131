"""Values of command-line options that several commands take, checked before anything is loaded."""

from __future__ import annotations

import argparse


def count(text: str, least: int = 1) -> int:
    """A whole number, `least` or more."""
    if text.isdecimal() and int(text) >= least:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")
