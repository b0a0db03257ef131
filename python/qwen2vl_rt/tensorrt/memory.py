"""Peak memory of this process over a stretch of work."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def reset_peak() -> None:
    """Start a new stretch; where the system does not allow it, the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes that were resident at most since `reset_peak`, mapped files included."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0
