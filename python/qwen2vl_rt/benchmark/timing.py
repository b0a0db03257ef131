"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable

REPEATS = 5


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def repeated(call: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each of `repeats` calls after one that warms up."""
    call()
    return [seconds(call) for _ in range(repeats)]
