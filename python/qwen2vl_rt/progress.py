"""Progress bars for long work: shown to a person at a terminal, silent otherwise."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(title: str, total: int | None, unit: str = "it", leave: bool = False) -> tqdm:
    """A bar on standard error that leaves no trace when standard error is not a terminal.

    `total` may be None until it is known. `leave`: the finished bar stays on the terminal.
    """
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        disable=not sys.stderr.isatty(),
        leave=leave,
    )
