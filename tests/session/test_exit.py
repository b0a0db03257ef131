"""However a script ends while an answer is generated, the process ends as the script says."""

import signal
import subprocess
import sys
import threading

import pytest

from qwen2vl_rt import CancelToken, Qwen2VLError
from qwen2vl_rt.calls import _Calls

SCRIPT = """
import os, signal, sys, threading, time
import numpy as np
import qwen2vl_rt
session = qwen2vl_rt.Session(sys.argv[1], max_length=4096, threads=1)
LONG = dict(prompt="Talk.", max_new_tokens=3500, ignore_eos=True)
"""
STREAM = "stream = session.stream(**LONG); next(stream)\n"
GENERATE = """
piece = threading.Event()
run = session._model.generate
def generate(*arguments):
    piece.set()
    return run(*arguments)
session._model.generate = generate
threading.Thread(target=lambda: session.generate(**LONG), daemon=True).start()
piece.wait(60)
"""
CAMERA = """
def watch():
    while True:
        session.generate("What?", images=[np.zeros((720, 1280, 3), np.uint8)], max_new_tokens=1)
threading.Thread(target=watch, daemon=True).start()
time.sleep(0.5)
"""
INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
for piece in session.stream(**LONG):
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (STREAM, 0),
        (STREAM + "sys.exit(3)", 3),
        (STREAM + "raise ValueError('user error')", 1),
        (GENERATE, 0),
        (CAMERA, 0),
        (INTERRUPTED, -signal.SIGINT),
    ],
    ids=["stream", "sys.exit", "exception", "daemon thread", "camera loop", "ctrl-c"],
)
def test_a_script_ends_with_its_own_code(bundle, ending, code):
    script = [sys.executable, "-c", SCRIPT + ending, str(bundle)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr


FORK = """
import os, sys, threading
from qwen2vl_rt import CancelToken
from qwen2vl_rt.calls import under_way
inside, done = threading.Event(), threading.Event()
def call():
    with under_way(CancelToken()):
        inside.set()
        done.wait()
threading.Thread(target=call).start()
inside.wait()
child = os.fork()
if child == 0:
    threading.current_thread()
    sys.exit(5)
_, status = os.waitpid(child, 0)
done.set()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_does_not_wait_for_its_parents_calls():
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=60).returncode == 5


FORKED = """
import os, sys, qwen2vl_rt
session = qwen2vl_rt.Session(sys.argv[1], max_length=4096, threads=2)
def in_child(*calls):
    child = os.fork()
    if child == 0:
        for call, outcome in calls:
            try:
                found = type(call()).__name__
            except BaseException as error:
                found = type(error).__name__
            if found != outcome:
                os._exit(1)
        os._exit(5)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 5:
        sys.exit(1)
ask = lambda: session.generate("Hello.", max_new_tokens=9, ignore_eos=True)
ask()
in_child((ask, "Answer"), (session.close, "NoneType"), (ask, "Qwen2VLError"))
stream = session.stream("Talk.", max_new_tokens=3500, ignore_eos=True)
next(stream)
in_child(
    (ask, "Qwen2VLError"), (session.close, "Qwen2VLError"), (lambda: list(stream), "Qwen2VLError"),
    (lambda: stream.answer, "Qwen2VLError"), (stream.close, "NoneType"),
)
stream.close()
ask()
"""


def test_a_forked_child_waits_for_no_thread_that_it_lacks(bundle):
    """Of the engine that it closes, of a call that was under way, of a stream: it answers or says why not."""
    script = [sys.executable, "-W", "ignore", "-c", FORKED, str(bundle)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_end_cancels_other_threads_calls_and_waits():
    calls, cancel, inside, left = _Calls(), CancelToken(), threading.Event(), []

    def call():
        with calls.under_way(cancel):
            inside.set()
            while not cancel.cancelled:
                threading.Event().wait(0.001)
            left.append(True)

    threading.Thread(target=call).start()
    assert inside.wait(10)
    own = CancelToken()
    with calls.under_way(own):  # as Ctrl-C may leave it: the end runs in the main thread
        calls.end()
    assert left == [True]
    assert not own.cancelled
    with pytest.raises(Qwen2VLError, match="ending"), calls.under_way(CancelToken()):
        pass


def test_the_end_does_not_wait_for_ever_for_what_no_cancel_reaches():
    calls, inside, over = _Calls(), threading.Event(), threading.Event()

    def call():
        with calls.under_way(CancelToken(), patience=0.01):
            inside.set()
            over.wait(30)

    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(10)
    calls.end()
    assert thread.is_alive()
    over.set()
    thread.join()
