"""Progress bars for long work: shown to a person at a terminal, silent otherwise."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(title: str, total: int, unit: str = "it") -> tqdm:
    """A bar on standard error that leaves no trace when standard error is not a terminal."""
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1024,
        disable=not sys.stderr.isatty(),
        leave=False,
    )
