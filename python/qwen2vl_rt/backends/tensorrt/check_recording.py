"""The self-check's decode steps as a session runs most: recorded once for each number of rows, replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.tensorrt.executors import Engines, TensorRTDecoder
from qwen2vl_rt.errors import BackendError


class Recordings:
    """What a decoder's engine queues for a step, by number of rows.

    An engine that can't be recorded has none, although it may say that it can: a session runs its steps one
    by one, too.
    """

    def __init__(self, engines: Engines, engine: TensorRTDecoder) -> None:
        # The CPU as a device has no stream, and nothing to record on it.
        self._stream: Any = getattr(engines.device, "stream", None) if engine.recordable() else None
        self._graphs: dict[int, Any] = {}

    def record(self, rows: int, queue: Callable[[], None]) -> None:
        """Record what `queue` queues for this many rows, unless there is a recording; nothing is run.

        The engine has run a step of as many rows before: what a first run loads can't be recorded.
        """
        if self._stream is None or rows in self._graphs:
            return
        graph = cuda.load().Graph()
        graph.begin(self._stream)
        try:
            queue()
            graph.end()
        except BackendError:
            self._stream = None
        else:
            self._graphs[rows] = graph
        finally:
            graph.abandon()  # of a recording that has ended, nothing

    def run(self, rows: int, queue: Callable[[], None]) -> None:
        """Queue a step: a replay where this many rows are recorded."""
        if rows in self._graphs:
            self._graphs[rows].launch(self._stream)
        else:
            queue()
