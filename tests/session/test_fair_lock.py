"""Calls of one session are served in the order they came."""

import threading
import time

from qwen2vl_rt.fair_lock import FairLock


def test_waiters_are_served_in_order_of_arrival():
    lock, order, threads = FairLock(), [], []

    def call(number):
        with lock:
            order.append(number)

    with lock:
        for number in range(8):
            thread = threading.Thread(target=call, args=(number,))
            thread.start()
            threads.append(thread)
            while len(lock._waiting) <= number:  # it has taken its place in the queue
                time.sleep(0.001)
    for thread in threads:
        thread.join(timeout=10)
    assert order == list(range(8))


def test_an_exception_inside_frees_the_lock():
    lock = FairLock()
    try:
        with lock:
            raise ValueError
    except ValueError:
        pass
    acquired = threading.Event()

    def call():
        with lock:
            acquired.set()

    threading.Thread(target=call, daemon=True).start()
    assert acquired.wait(10)
