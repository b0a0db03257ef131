"""A lock that serves its waiters in the order they came."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """Mutual exclusion in order of arrival (threading.Lock promises no order).

    A session's calls queue here: a camera loop must not starve another thread's question.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._mutex:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C while queued: give the place up, or pass on a turn already given
            with self._mutex:
                queued = turn in self._waiting
                if queued:
                    self._waiting.remove(turn)
            if not queued:
                self.__exit__()
            raise

    def __exit__(self, *_exception: object) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
