"""One runtime in a process of its own: loads a model and measures what it is asked to, one request a line.

Each runtime's module calls `main` with a class as `Runtime` describes and so becomes a command:

    python -m bench.compare.peer_x installed
    python -m bench.compare.peer_x prepare --checkpoint DIR --folder DIR --precision int4
    python -m bench.compare.peer_x serve --folder DIR --precision int4 --threads 2

`serve` reads JSON objects from standard input ({"do": "text", ...}) and answers each with one. It needs
nothing but the standard library, numpy and the runtime itself, so that it can run in another environment
than the project.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Runtime(Protocol):
    """What a runtime has to do. Folders hold what `prepare` wrote."""

    packages: tuple[str, ...]
    """What has to be installed, the runtime itself first."""

    @staticmethod
    def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
        """Convert the checkpoint."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load, ready for text and pictures."""

    def text(self, ids: list[int], text: str, new_tokens: int) -> dict[str, float]:
        """Read a prompt it has not seen (as `ids`, which are `text`'s) and generate greedily past any end.

        Returns prompt_tokens, prefill_seconds (to the first token) and decode_seconds (of the
        `new_tokens - 1` after it).
        """

    def vision(self, picture: np.ndarray) -> dict[str, float]:
        """Seconds from pixels (uint8 [height, width, 3], of a size that needs no resizing) to embeddings."""


def main(runtime: type[Runtime]) -> None:
    """The command of one runtime."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("installed")
    prepare, serve = commands.add_parser("prepare"), commands.add_parser("serve")
    prepare.add_argument("--checkpoint", type=Path, required=True)
    for command in (prepare, serve):
        command.add_argument("--folder", type=Path, required=True)
        command.add_argument("--precision", required=True)
    serve.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    if options.command == "installed":
        print(json.dumps(_versions(runtime.packages)))
    elif options.command == "prepare":
        runtime.prepare(options.checkpoint, options.folder, options.precision)
    else:
        _serve(runtime, options)


def _versions(packages: tuple[str, ...]) -> dict[str, str] | None:
    """Version by package; None when one is not installed."""
    try:
        return {package: importlib.metadata.version(package) for package in packages}
    except importlib.metadata.PackageNotFoundError:
        return None


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone.

    A stopped process would not see its input end, and would keep its gigabytes.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))


def _serve(runtime: type[Runtime], options: argparse.Namespace) -> None:
    _end_with_parent()
    # Runtimes print what they like; the answers go where standard output was.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = time.perf_counter()
    loaded = runtime(options.folder, options.precision, options.threads)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({"load_seconds": time.perf_counter() - started})
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        if action == "text":
            answer(loaded.text(**request))
        elif action == "vision":
            answer(loaded.vision(np.load(request["picture"])))
        else:
            answer({"peak_bytes": _peak_bytes()})


def _peak_bytes() -> int:
    """The process's largest resident memory, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: this needs Linux")
