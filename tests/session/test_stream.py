"""A stream always ends: with its answer, its error, or a cancel."""

import gc
import threading
import weakref

import numpy as np
import pytest

from qwen2vl_rt import Qwen2VLError
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


def test_the_end_reaches_every_reader(monkeypatch):
    monkeypatch.setattr("qwen2vl_rt.stream.Answer", FakeAnswer)
    go, result, found = threading.Event(), FakeAnswer(), []

    def produce(on_piece, _cancel):
        go.wait(10)
        on_piece("a")
        return result

    stream = AnswerStream(produce)
    readers = [threading.Thread(target=lambda: found.append(stream.answer), daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    go.set()
    for reader in readers:
        reader.join(timeout=10)
    assert found == [result] * 3


def test_an_end_that_an_interrupted_reader_took_away_is_found(monkeypatch):
    monkeypatch.setattr("qwen2vl_rt.stream.Answer", FakeAnswer)
    result = FakeAnswer()
    stream = AnswerStream(lambda _on_piece, _cancel: result)
    stream._items.get(timeout=10)
    assert stream.answer is result


def test_no_thread_for_a_stream_is_the_projects_own_error(monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Qwen2VLError, match="none can be started"):
        AnswerStream(lambda _on_piece, _cancel: FakeAnswer())


def test_a_failed_stream_holds_its_pictures_no_longer_than_itself(session):
    frame = np.zeros((8, 2000, 3), np.uint8)  # too long for its height
    seen = weakref.ref(frame)
    gc.disable()
    try:
        stream = session.stream("?", images=[frame])
        with pytest.raises(Qwen2VLError):
            next(stream)
        stream.close()
        del stream, frame
        assert seen() is None
    finally:
        gc.enable()
