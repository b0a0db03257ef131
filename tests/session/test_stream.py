"""A stream always ends: with its answer, its error, or a cancel."""

import gc
import threading

import pytest

from qwen2vl_rt.stream import AnswerStream


class FakeAnswer:
    """Stands for an Answer where only its identity matters."""


def test_pieces_arrive_in_order_and_then_the_answer(monkeypatch):
    monkeypatch.setattr("qwen2vl_rt.stream.Answer", FakeAnswer)
    result = FakeAnswer()

    def produce(on_piece, _cancel):
        for piece in "abc":
            on_piece(piece)
        return result

    stream = AnswerStream(produce)
    assert list(stream) == ["a", "b", "c"]
    assert stream.answer is result
    assert list(stream) == []


def test_an_error_reaches_the_reader_every_time():
    def produce(on_piece, _cancel):
        on_piece("a")
        raise ValueError("engine")

    stream = AnswerStream(produce)
    assert next(stream) == "a"
    for _ in range(2):
        with pytest.raises(ValueError, match="engine"):
            next(stream)


@pytest.mark.parametrize("leave", ["close", "drop", "with"])
def test_leaving_cancels(leave):
    cancelled = threading.Event()

    def produce(_on_piece, cancel):
        while not cancel.cancelled:
            threading.Event().wait(0.001)
        cancelled.set()
        return FakeAnswer()

    stream = AnswerStream(produce)
    if leave == "close":
        stream.close()
    elif leave == "with":
        with stream:
            pass
    else:
        del stream
        gc.collect()
    assert cancelled.wait(10)
