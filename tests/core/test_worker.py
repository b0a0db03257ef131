"""One thread that works for many: only the GPU's half uses it, so that a program of its own does here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler (c++)")
def test_all_work_runs_on_one_other_thread_one_at_a_time(tmp_path):
    """Eight callers, 500 works each, of which every fifth throws."""
    sources = [Path(__file__).with_name("worker.cc"), ROOT / "csrc" / "common" / "worker.cc"]
    command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-pthread", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, *sources, "-o", tmp_path / "worker"], check=True)
    done = subprocess.run([tmp_path / "worker"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "threads 1 apart 1 at once 1 done 3200 thrown 800\n"
