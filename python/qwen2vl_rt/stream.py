"""An answer that arrives piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from qwen2vl_rt import _core
from qwen2vl_rt.answer import Answer

# Produces the answer, handing each piece of text to the callback as it comes; stops soon after a cancel.
Produce = Callable[[Callable[[str], None], _core.CancelToken], Answer]


class AnswerStream(Iterator[str]):
    """Iterate over it for the text; read `answer` for the whole result.

    Generation runs in a thread of its own and begins at once. Leaving the `with` block, `close()`, or
    dropping the stream cancels what is still to come. An error is raised where the text is read.
    """

    def __init__(self, produce: Produce) -> None:
        self._cancel = _core.CancelToken()
        self._items: queue.SimpleQueue[str | Answer | BaseException] = queue.SimpleQueue()
        self._result: Answer | BaseException | None = None
        # The thread must not hold this object, or dropping the stream would never cancel it.
        self._thread = threading.Thread(
            target=_produce, args=(produce, self._items, self._cancel), name="qwen2vl-stream", daemon=True
        )
        self._thread.start()

    def __next__(self) -> str:
        if self._result is None:
            item = self._items.get()
            if isinstance(item, str):
                return item
            self._result = item
        if isinstance(self._result, BaseException):
            raise self._result
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The whole answer; waits for its end. Pieces not read yet are skipped."""
        for _ in self:
            pass
        assert isinstance(self._result, Answer)
        return self._result

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


def _produce(produce: Produce, items: queue.SimpleQueue, cancel: _core.CancelToken) -> None:
    # Whatever happens, the last item ends the stream.
    try:
        items.put(produce(items.put, cancel))
    except BaseException as error:
        items.put(error)
