"""The process's resident memory: now, and the most since a moment of one's choice (Linux)."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STATM = Path("/proc/self/statm")
RESET_PEAK = "5"  # Linux, Documentation/filesystems/proc.rst: "reset the peak resident set size"


def resident_memory() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Begin anew; where the system does not allow it, `peak_memory` goes on from the process's start."""
    with contextlib.suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def peak_memory() -> int:
    """Bytes, mapped files included."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
