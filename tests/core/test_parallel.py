"""Work split over threads, when the system grants them and when it doesn't."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from qwen2vl_rt import _core

WITHOUT_THREADS = """
import resource
import numpy as np
from qwen2vl_rt import _core

_core.set_threads(4)
cache = _core.KVCache(8, 2, 4, 600, 64)
for layer in range(8):
    cache.keys(layer)[:] = np.arange(64)
    cache.values(layer)[:] = -np.arange(64)
cache.append(0, range(600))
cache.keys(5)[1] = 0
# A thread's stack does not fit the address space that is left.
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), used + (1 << 20)))
cache.copy_row(0, 1)
assert (cache.keys(5)[1] == np.arange(64)).all()
print("copied")
"""


def test_work_is_done_when_no_thread_can_be_started():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("copied\n", 0), done.stderr


def test_any_number_of_threads_gives_the_same_table():
    positions = np.arange(3 * 5000).reshape(3, 5000)
    tables = []
    for threads in (1, 2, 7):
        _core.set_threads(threads)
        tables.append(_core.rope_table(positions, 16, 1e6, (2, 3, 3)))
    _core.set_threads(0)
    for cos, sin in tables[1:]:
        np.testing.assert_array_equal(cos, tables[0][0])
        np.testing.assert_array_equal(sin, tables[0][1])
