"""The runtimes that are compared, and their processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = "qwen2vl_rt"
MODULES = {
    OURS: "bench.compare.ours",
    "OpenVINO GenAI": "bench.compare.peer_openvino",
    "llama.cpp": "bench.compare.peer_llama_cpp",
    "transformers": "bench.compare.peer_transformers",
}


@dataclass(frozen=True)
class Contestant:
    """One runtime at one precision."""

    runtime: str
    precision: str
    vision: bool = True
    """Whether its pictures are measured: a vision tower that another contestant shares is measured once."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.runtime} {self.precision}"

    @property
    def slug(self) -> str:
        """As its folder is called."""
        return self.name.lower().replace(" ", "-")


# Loaded side by side and measured in turn, a group at a time, so that a machine need not hold all of them.
GROUPS = (
    (
        Contestant(OURS, "int4"),
        Contestant(OURS, "int4-int8"),
        Contestant("OpenVINO GenAI", "int4"),
        Contestant("llama.cpp", "q4_0"),
    ),
    (
        Contestant(OURS, "int8"),
        Contestant("OpenVINO GenAI", "int8"),
        Contestant("llama.cpp", "q8_0", vision=False),
        Contestant("transformers", "bf16"),
    ),
)


def command(python: str, runtime: str, *arguments: str) -> list[str]:
    """The command line of a runtime's module."""
    return [python, "-m", MODULES[runtime], *arguments]


def installed(python: str, runtime: str) -> dict[str, str] | None:
    """Versions of the runtime's packages in an environment; None when it is not installed there."""
    done = subprocess.run(command(python, runtime, "installed"), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return None
    return json.loads(done.stdout.splitlines()[-1])


def prepare(python: str, contestant: Contestant, checkpoint: Path, folder: Path) -> bool:
    """Convert the checkpoint for a contestant, once; False when its converter failed."""
    if folder.exists():
        return True
    partial = folder.with_name(folder.name + ".partial")  # what is half written is not taken for done
    if partial.is_symlink():
        partial.unlink()
    elif partial.exists():
        shutil.rmtree(partial)
    where = ["--checkpoint", str(checkpoint), "--folder", str(partial), "--precision", contestant.precision]
    if subprocess.run(command(python, contestant.runtime, "prepare", *where), cwd=ROOT).returncode:
        return False
    partial.rename(folder)
    return True


class Worker:
    """A contestant's process: loaded, and stopped (SIGSTOP) whenever it is not its turn."""

    def __init__(self, python: str, contestant: Contestant, folder: Path, threads: int, log: Path) -> None:
        self.contestant = contestant
        self._log = log
        serve = ["serve", "--folder", str(folder), "--precision", contestant.precision]
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                command(python, contestant.runtime, *serve, "--threads", str(threads)),
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.load_seconds = self._read()["load_seconds"]
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, **request: Any) -> dict[str, float]:
        """Let it measure one thing.

        Raises:
            RuntimeError: the process ended; its log says why.
        """
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._read()
        except OSError as error:
            raise self._failure() from error
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        return json.loads(line)

    def _failure(self) -> RuntimeError:
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return RuntimeError(f"{self.contestant.name} ended: {' '.join(last)} (log: {self._log})")
