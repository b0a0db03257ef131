"""One thread at a time for a picture or file that several threads' calls were given."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_locks: dict[int, list] = {}  # id of a source in use: its lock, and how many use it
_mutex = threading.Lock()


@contextlib.contextmanager
def source_lock(source: object) -> Iterator[None]:
    """Hold `source` for the block: reading moves an open file, and decodes a PIL image in place."""
    with _mutex:
        entry = _locks.setdefault(id(source), [threading.RLock(), 0])
        entry[1] += 1
    try:
        with entry[0]:
            yield
    finally:
        with _mutex:
            entry[1] -= 1
            if entry[1] == 0:
                _locks.pop(id(source), None)
