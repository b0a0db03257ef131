"""Files that are there whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where a file is written before it is moved to `path`."""
    return path.with_name(f"{path.name}.partial")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file, or put another in its place. Raises OSError; then what was there is there still."""
    partial = partial_path(path)
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # of a write that failed
