"""Calls of one session are served in the order they came, whatever interrupts them."""

import random
import signal
import threading
import time

import pytest

from qwen2vl_rt import Qwen2VLError, _core


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_waiters_are_served_in_order_of_arrival():
    lock, order, threads = _core.FairLock(), [], []

    def call(number):
        with lock.turn():
            order.append(number)

    with lock.turn():
        for number in range(8):
            threads.append(threading.Thread(target=call, args=(number,)))
            threads[-1].start()
            wait_until(lambda: lock.waiting == len(threads))
    for thread in threads:
        thread.join(timeout=10)
    assert order == list(range(8))


def test_an_exception_inside_frees_the_lock():
    lock = _core.FairLock()
    with pytest.raises(ValueError), lock.turn():
        raise ValueError
    assert not lock.held


def test_a_cancel_reaches_the_queue():
    lock, cancel, came = _core.FairLock(), _core.CancelToken(), []

    def call():
        with lock.turn(cancel) as turn:
            came.append(turn)

    with lock.turn():
        thread = threading.Thread(target=call)
        thread.start()
        wait_until(lambda: lock.waiting == 1)
        cancel.cancel()
        thread.join(timeout=10)
        assert came == [False]
        assert lock.held
    with lock.turn() as turn:
        assert turn


def test_a_cancelled_call_does_not_wait():
    lock, cancel = _core.FairLock(), _core.CancelToken()
    cancel.cancel()
    with lock.turn(cancel) as turn:
        assert not turn
    assert not lock.held


def test_a_turn_is_entered_once():
    lock = _core.FairLock()
    turn = lock.turn()
    with turn, pytest.raises(Qwen2VLError, match="once"), turn:
        pass
    assert not lock.held


@pytest.fixture
def interrupts():
    """A timer's signal is Ctrl-C."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def held_by_a_thread(lock) -> tuple[threading.Thread, threading.Event]:
    """The thread, and what lets go of the lock."""
    holds, over = threading.Event(), threading.Event()

    def hold():
        with lock.turn():
            holds.set()
            over.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(10)
    return thread, over


def test_ctrl_c_reaches_the_queue(interrupts):
    lock = _core.FairLock()
    thread, over = held_by_a_thread(lock)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(KeyboardInterrupt), lock.turn():
        pass
    assert (lock.waiting, lock.held) == (0, True)
    over.set()
    thread.join(timeout=10)
    assert not lock.held


def test_an_interrupted_call_is_not_waited_for_by_its_own_thread():
    """A signal's handler that closes the session, while this thread's call holds its turn or waits for it."""
    lock, refused = _core.FairLock(), []

    def handler(*_):
        with pytest.raises(Qwen2VLError, match="call of this thread is under way") as error, lock.turn():
            pass
        refused.append(error)
        over.set()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        over = threading.Event()
        with lock.turn():
            signal.raise_signal(signal.SIGALRM)
        thread, over = held_by_a_thread(lock)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with lock.turn() as turn:
            assert turn
        thread.join(timeout=10)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (len(refused), lock.held, lock.waiting) == (2, False, 0)


def test_ctrl_c_at_any_instruction_leaves_no_lock_held(interrupts):
    lock, moments = _core.FairLock(), random.Random(0)
    for _ in range(2000):
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(2e-5, 3e-4))
            while True:
                with lock.turn():
                    pass
        except KeyboardInterrupt:
            pass
        assert (lock.held, lock.waiting) == (False, 0)
