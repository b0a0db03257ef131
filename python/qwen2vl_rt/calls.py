"""Calls under way in this process: how each is cancelled, and how the interpreter's end waits for them."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator

from qwen2vl_rt._core import CancelToken
from qwen2vl_rt.errors import InputError, Qwen2VLError


class CancelledError(Exception):
    """A call's token was set while it prepared its prompt. The session makes a cancelled answer of it."""


def raise_if_cancelled(cancel: CancelToken | None) -> None:
    """Raise CancelledError once the token is set."""
    if cancel is not None and cancel.cancelled:
        raise CancelledError


def call_token(cancel: object) -> CancelToken:
    """The token of a call: what the caller gave as `cancel`, or on None one of its own.

    Raises:
        InputError: something else was given.
    """
    if cancel is None:
        return CancelToken()
    if not isinstance(cancel, CancelToken):
        raise InputError(f"cancel is {cancel!r:.80}: give a qwen2vl_rt.CancelToken().")
    return cancel


class _Call:
    def __init__(self, cancel: CancelToken, patience: float | None) -> None:
        self.cancel = cancel
        self.patience = patience
        self.thread = threading.get_ident()
        self.over = threading.Event()


class _Calls:
    """What runs compiled code now.

    At its end the interpreter stops daemon threads where they next ask for the GIL. In the middle of compiled
    code that aborts the process, so they have to be out of it before.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """No call is under way."""
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()
        self._ending = False

    @contextlib.contextmanager
    def under_way(self, cancel: CancelToken, patience: float | None = None) -> Iterator[None]:
        """What the block does is cancelled at the interpreter's end, and waited for.

        Args:
            cancel: ends it soon after it is set.
            patience: the most seconds to wait, for what no cancel may reach (a caller's file that gives
                nothing); None waits as long as it takes.

        Raises:
            Qwen2VLError: the interpreter is ending.
        """
        call = _Call(cancel, patience)
        with self._lock:
            if self._ending:
                raise Qwen2VLError("Python is ending: no call can be answered any more.")
            self._calls.add(call)
        try:
            yield
        finally:
            call.over.set()
            with self._lock:
                self._calls.discard(call)

    def end(self) -> None:
        """No new calls; those of other threads are cancelled and waited for."""
        with self._lock:
            self._ending = True
            # This thread's own are over: Ctrl-C may have kept one from saying so.
            calls = [call for call in self._calls if call.thread != threading.get_ident()]
        for call in calls:
            call.cancel.cancel()
        for call in calls:
            call.over.wait(call.patience)


_calls = _Calls()
under_way = _calls.under_way
# Threads that are no daemons are joined before this runs: their calls end as they would.
atexit.register(_calls.end)
if hasattr(os, "register_at_fork"):
    # A forked child has none of the threads whose calls it would wait for.
    os.register_at_fork(after_in_child=_calls.reset)
