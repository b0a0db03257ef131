"""An answer that arrives piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from qwen2vl_rt import _core
from qwen2vl_rt.answer import Answer
from qwen2vl_rt.errors import Qwen2VLError

# Produces the answer, handing each piece of text to the callback as it comes; stops soon after a cancel.
Produce = Callable[[Callable[[str], None], _core.CancelToken], Answer]

# Stands behind the last piece, and stays in the queue, so that every reader comes upon it.
_END = object()
# Seconds after which a reader looks whether the end has passed it by: Ctrl-C may take it out of the queue and
# lose it.
_PATIENCE = 1.0


class AnswerStream(Iterator[str]):
    """Iterate over it for the text; read `answer` for the whole result.

    Generation runs in a thread of its own and begins at once. Leaving the `with` block, `close()`, or
    dropping the stream cancels what is still to come. An error is raised where the text is read. Several
    threads may read: each piece goes to one of them, the end and `answer` to all.

    Raises:
        Qwen2VLError: no thread can be started.
    """

    def __init__(self, produce: Produce, cancel: _core.CancelToken | None = None) -> None:
        self._cancel = _core.CancelToken() if cancel is None else cancel
        self._items: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._outcome: list[Answer | BaseException] = []  # one, once the thread is through
        # The thread must not hold this object, or dropping the stream would never cancel it.
        self._thread = threading.Thread(
            target=_produce,
            args=(produce, self._items, self._outcome, self._cancel),
            name="qwen2vl-stream",
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            raise Qwen2VLError(
                f"A stream needs a thread of its own, and none can be started ({error}): end other threads, "
                "raise the limit of this user or container, or call generate(), which needs none."
            ) from error

    def __next__(self) -> str:
        while True:
            try:
                item = self._items.get(timeout=_PATIENCE)
            except queue.Empty:
                if self._thread.is_alive():
                    continue
                item = _END
            if isinstance(item, str):
                return item
            self._items.put(_END)
            if not self._outcome:
                raise Qwen2VLError(
                    "This stream's thread is in the process that opened it, from which this one was forked: "
                    "read it there, or open a session and a stream here."
                )
            outcome = self._outcome[0]
            if not isinstance(outcome, BaseException):
                raise StopIteration
            try:
                raise outcome
            finally:
                del self, outcome  # the traceback holds this frame, and would hold the error with it

    @property
    def answer(self) -> Answer:
        """The whole answer; waits for its end. Pieces not read yet are skipped."""
        for _ in self:
            pass
        outcome = self._outcome[0]
        assert isinstance(outcome, Answer)
        return outcome

    def close(self) -> None:
        """Cancel what is still to come and wait until the session is free again."""
        self._cancel.cancel()
        self._thread.join()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._cancel.cancel()


def _produce(
    produce: Produce,
    items: queue.SimpleQueue[object],
    outcome: list[Answer | BaseException],
    cancel: _core.CancelToken,
) -> None:
    # Whatever happens, the stream ends.
    try:
        outcome.append(produce(items.put, cancel))
    except BaseException as error:
        outcome.append(error)
    finally:
        del outcome  # an error's traceback holds this frame
        items.put(_END)
