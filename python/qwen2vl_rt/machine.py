"""The machine that figures were measured on (Linux)."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """As the kernel names it; the architecture's name where it does not, as on many ARM boards."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def physical_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
