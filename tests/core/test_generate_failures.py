"""What goes wrong in the middle: exceptions, cancellation, reentry, NaN. The generator stays usable."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, Qwen2VLError
from tests.support.toy_decoder import HIDDEN, IMAGE_PAD, Prompt, Toy, ToyExecutor, reference_answer

TEXT = Prompt([1, 2, 3, 4, 5])
PICTURE = Prompt([7, 8], (IMAGE_PAD, (1, 4, 6), 1), [9, 10, 11])


class EngineError(Exception):
    pass


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, prefill_chunk=4)


def fail_at(run, scribble=True):
    """Raises in run number `run`, after writing rubbish where the step's keys and values would go."""
    count = iter(range(10**9))

    def before_run(step):
        if next(count) != run:
            return
        if scribble:
            cache = before_run.cache
            for b in range(step.rows):
                cache.keys(0)[step.first_row + b, :, step.past_length[b] :] = np.nan
                cache.values(0)[step.first_row + b, :, step.past_length[b] :] = np.nan
        raise EngineError(run)

    return before_run


@pytest.mark.parametrize("run", range(12))
def test_an_engine_failure_passes_through_and_the_generator_stays_right(toy, run):
    toy.executor.before_run = fail_at(run)
    toy.executor.before_run.cache = toy.cache
    with pytest.raises(EngineError) as caught:
        toy.generate(PICTURE, TEXT, TEXT + PICTURE)
    assert caught.value.args == (run,)
    toy.executor.before_run = None
    # Positions within a row's length are intact, so reuse after the failure gives the right answer.
    for row in range(toy.cache.rows):
        length = toy.cache.length(row)
        assert np.isfinite(toy.cache.keys(0)[row, :, :length]).all()
    for prompt in (PICTURE, TEXT + PICTURE, TEXT):
        assert toy.generate(prompt).token_ids == reference_answer(toy.model, prompt, 12)


@pytest.mark.parametrize("call", [0, 1, 7])
def test_a_callback_failure_passes_through_and_the_generator_stays_right(toy, call):
    count = iter(range(10**9))

    def on_text(index, piece, token_id):
        if next(count) == call:
            raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        toy.generate(PICTURE, TEXT, on_text=on_text)
    assert toy.generate(PICTURE).token_ids == reference_answer(toy.model, PICTURE, 12)


def test_a_callback_result_that_has_no_truth_value_is_an_error(toy):
    with pytest.raises(ValueError, match="ambiguous"):
        toy.generate(TEXT, on_text=lambda *_: np.zeros(2))
    assert toy.generate(TEXT).token_ids == reference_answer(toy.model, TEXT, 12)


def test_keyboard_interrupt_in_the_engine_passes_through(toy):
    def before_run(step):
        raise KeyboardInterrupt

    toy.executor.before_run = before_run
    with pytest.raises(KeyboardInterrupt):
        toy.generate(TEXT)


def test_nan_logits_are_a_clear_error(toy):
    toy.model.head = toy.model.head * np.nan
    with pytest.raises(Qwen2VLError, match="the engine returned NaN logits at step 0"):
        toy.generate(TEXT)


def test_nan_logits_in_the_middle(toy):
    def before_run(step):
        if step.past_length[0] == 8:
            toy.model.head = toy.model.head * np.nan

    toy.executor.before_run = before_run
    with pytest.raises(Qwen2VLError, match="NaN logits at step 4"):
        toy.generate(TEXT)


def test_nan_in_the_cache_does_not_outlive_its_answer(toy):
    """Keys and values of an answer that overflowed are forgotten, and zeroed."""
    overflowing = PICTURE.request(embeddings=[np.full((6, HIDDEN), np.nan, np.float32)])
    with pytest.raises(Qwen2VLError, match="NaN logits at step 0"):
        toy.generator.generate([overflowing])
    assert toy.cached_prefix(PICTURE) == 0
    assert np.isfinite(toy.cache.keys(0)).all()
    assert np.isfinite(toy.cache.values(1)).all()
    assert toy.generate(PICTURE).token_ids == reference_answer(toy.model, PICTURE, 12)


def test_an_executor_without_run_is_an_error(toy):
    class Empty(_core.Executor):
        pass

    generator = toy.generator_over(Empty())
    with pytest.raises(Qwen2VLError, match="must define run"):
        generator.generate([TEXT.request()])


# --- cancellation --------------------------------------------------------------------------------------


def test_cancel_before_anything_runs(toy):
    cancel = _core.CancelToken()
    cancel.cancel()
    first, second = toy.generate(TEXT, PICTURE, cancel=cancel)
    assert (first.finish_reason, first.token_ids, first.text) == ("cancelled", [], "")
    assert second.finish_reason == "cancelled"
    assert toy.executor.shapes == []


def test_cancel_within_prefill_keeps_what_is_done(toy):
    cancel = _core.CancelToken()
    toy.executor.before_run = lambda step: step.past_length[0] == 4 and cancel.cancel()
    result = toy.generate(PICTURE, cancel=cancel)
    assert (result.finish_reason, result.token_ids) == ("cancelled", [])
    assert len(toy.executor.shapes) == 2
    assert toy.cache.length(0) == 8
    toy.executor.before_run = None
    again = toy.generate(PICTURE)
    assert again.cached_tokens == 8  # ends right behind the picture
    assert again.token_ids == reference_answer(toy.model, PICTURE, 12)


def test_cancel_during_decode_returns_the_part_so_far(toy):
    cancel = _core.CancelToken()
    pieces = {0: "", 1: ""}
    tokens = {0: [], 1: []}

    def on_text(index, piece, token_id):
        pieces[index] += piece
        tokens[index].append(token_id)
        if len(tokens[1]) == 5:
            cancel.cancel()

    results = toy.generate(TEXT, PICTURE, on_text=on_text, cancel=cancel, max_new_tokens=30)
    for index, (result, prompt) in enumerate(zip(results, (TEXT, PICTURE), strict=True)):
        assert result.finish_reason == "cancelled"
        assert result.token_ids == reference_answer(toy.model, prompt, len(result.token_ids))
        assert pieces[index] == result.text  # held-back text comes in one more call
    assert len(results[1].token_ids) == 5


def test_held_back_text_of_a_cancelled_answer_comes_in_one_more_call(toy):
    full = toy.generate(TEXT, max_new_tokens=4).text
    cancel = _core.CancelToken()
    calls = []

    def on_text(index, piece, token_id):
        calls.append((piece, token_id))
        if len(calls) == 4:
            cancel.cancel()

    stop = full[-1] + "never comes"
    result = toy.generate(TEXT, stop_strings=[stop], on_text=on_text, cancel=cancel)
    assert (result.finish_reason, result.text) == ("cancelled", full)
    assert calls[4:] == [(full[-1], -1)]
    assert "".join(piece for piece, _ in calls) == full


def test_cancel_from_another_thread(toy):
    cancel = _core.CancelToken()
    toy.executor.before_run = lambda step: time.sleep(0.002)
    timer = threading.Timer(0.05, cancel.cancel)
    timer.start()
    started = time.perf_counter()
    result = toy.generate(TEXT, max_new_tokens=190, cancel=cancel)
    assert result.finish_reason == "cancelled"
    assert time.perf_counter() - started < 2
    timer.join()
    assert cancel.cancelled


# --- threads and memory ----------------------------------------------------------------------------------


def test_a_second_generation_on_the_same_cache_is_refused(toy):
    """From another thread, or from within a callback: the session above queues its calls."""
    errors = []

    def on_text(index, piece, token_id):
        for call in (
            lambda: toy.generate(TEXT),
            lambda: toy.cache.truncate(0, 0),
            lambda: toy.cache.move_row(0, 1),
            lambda: toy.cached_prefix(TEXT),
        ):
            try:
                call()
            except Qwen2VLError as error:
                errors.append(str(error))

    result = toy.generate(PICTURE, on_text=on_text)
    assert len(errors) == 48
    assert all("in use" in error for error in errors)
    assert result.token_ids == reference_answer(toy.model, PICTURE, 12)


def test_the_gil_is_released_between_runs(toy):
    """Other Python threads run while the loop does: a pure C++ part must not hold them up."""
    beats = []
    stop = threading.Event()

    def beat():
        while not stop.is_set():
            beats.append(time.perf_counter())
            time.sleep(0.0005)

    def beats_of_one_call() -> int:
        before = len(beats)
        toy.generate(TEXT, max_new_tokens=150)
        return len(beats) - before

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        # A busy machine may not run the other thread during one call; during none of many it is held up.
        assert any(beats_of_one_call() > 10 for _ in range(50))
    finally:
        stop.set()
        thread.join()


def test_nothing_is_leaked(tmp_path):
    toy = Toy(tmp_path)
    embeddings = np.ones((6, HIDDEN), np.float32)
    request = PICTURE.request(embeddings=[embeddings])
    before = sys.getrefcount(embeddings)

    def on_text(index, piece, token_id):
        if token_id % 2:
            raise EngineError

    callback_references = sys.getrefcount(on_text)
    for _ in range(50):
        with contextlib.suppress(EngineError):
            toy.generator.generate([request], on_text=on_text)
    gc.collect()
    assert sys.getrefcount(embeddings) == before
    assert sys.getrefcount(on_text) <= callback_references + 1
    del request
    gc.collect()
    assert sys.getrefcount(embeddings) == before - 1

    executor = weakref.ref(toy.executor)
    del toy
    gc.collect()
    assert executor() is None


def test_step_views_outlive_the_generator(tmp_path):
    toy = Toy(tmp_path)
    kept = []
    toy.executor.before_run = lambda step: kept.append(step.logits)
    toy.generate(TEXT)
    last = kept[-1]
    del toy
    gc.collect()
    assert np.isfinite(last).all()
    last[:] = 0


def test_an_executor_that_is_only_referenced_by_the_generator(tmp_path):
    toy = Toy(tmp_path)
    generator = toy.generator_over(ToyExecutor(toy.model, toy.cache))
    gc.collect()
    result = generator.generate([TEXT.request()])[0]
    assert result.token_ids == reference_answer(toy.model, TEXT, 12)


def test_none_is_refused_where_an_object_is_needed(toy):
    with pytest.raises((InputError, TypeError)):
        toy.generator.generate([None])
    with pytest.raises((InputError, TypeError)):
        toy.generator_over(None)
    with pytest.raises((InputError, TypeError)):
        _core.Generator(None, toy.token_text, **toy.settings)


def test_generation_works_in_a_forked_child(toy):
    """Nothing global but a thread count: a worker process forked from a server can answer."""
    expected = toy.generate(PICTURE).token_ids
    child = os.fork()
    if child == 0:
        os._exit(0 if toy.generate(PICTURE).token_ids == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
