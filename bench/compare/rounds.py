"""The protocol: what is measured, in which order, how often."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.compare.material import Prompts, write_picture
from bench.compare.runtimes import Contestant, Worker

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Protocol:
    """The same for every runtime."""

    prompt_tokens: int = 512
    new_tokens: int = 65
    """Of each answer; the first belongs to prefill, the others are decode."""
    pictures: tuple[tuple[int, int], ...] = ((448, 448), (1260, 840))
    """Width and height in pixels, multiples of 28: nobody has to resize them."""
    rounds: int = 3
    slow_seconds: float = 15.0
    """What takes longer is measured in the first round only."""
    threads: int = 2


@dataclass
class Found:
    """What one contestant showed: all values, and peaks of resident memory."""

    contestant: Contestant
    versions: dict[str, str]
    load_seconds: float
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak_bytes: dict[str, int] = field(default_factory=dict)
    error: str | None = None


def picture_name(size: tuple[int, int]) -> str:
    """A picture's column."""
    return f"vision {size[0]}x{size[1]}"


class Group:
    """Contestants that are loaded side by side."""

    def __init__(
        self,
        workers: list[tuple[Worker, Found]],
        protocol: Protocol,
        prompts: Prompts,
        folder: Path,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._workers, self._protocol, self._folder, self._say = workers, protocol, folder, say
        self._warm_up_prompt, *self._prompts = (
            prompts.next(protocol.prompt_tokens) for _ in range(1 + protocol.rounds)
        )

    def run(self) -> None:
        """A warm-up of each, then the rounds; every round begins with another one."""
        for worker, found in self._workers:
            self._guarded(found, lambda worker=worker: self._warm_up(worker))
        for number in range(self._protocol.rounds):
            first = number % len(self._workers)
            for measure in [self._text, *(self._picture(size) for size in self._protocol.pictures)]:
                for worker, found in self._workers[first:] + self._workers[:first]:
                    self._guarded(found, lambda m=measure, w=worker, f=found, n=number: m(w, f, n))

    def _guarded(self, found: Found, call: Callable[[], None]) -> None:
        """A contestant that breaks down is out, the others go on."""
        if found.error:
            return
        try:
            call()
        except RuntimeError as error:
            found.error = str(error)
            self._say(found.error)

    def _warm_up(self, worker: Worker) -> None:
        ids, text = self._warm_up_prompt
        worker.ask(do="text", ids=ids, text=text, new_tokens=WARM_UP_TOKENS)
        if worker.contestant.vision:
            width, height = self._protocol.pictures[0]
            worker.ask(do="vision", picture=str(write_picture(self._folder, width, height, 1000)))

    def _text(self, worker: Worker, found: Found, number: int) -> None:
        protocol = self._protocol
        ids, text = self._prompts[number]
        times = worker.ask(do="text", ids=ids, text=text, new_tokens=protocol.new_tokens)
        if times["prompt_tokens"] != protocol.prompt_tokens:
            raise RuntimeError(
                f"{worker.contestant.name} read {times['prompt_tokens']} tokens, not {protocol.prompt_tokens}"
            )
        found.values["prefill"].append(protocol.prompt_tokens / times["prefill_seconds"])
        found.values["decode"].append((protocol.new_tokens - 1) / times["decode_seconds"])
        self._note(
            worker,
            found,
            "text",
            f"{found.values['prefill'][-1]:.1f} and {found.values['decode'][-1]:.2f} tok/s",
        )

    def _picture(self, size: tuple[int, int]) -> Callable[[Worker, Found, int], None]:
        name = picture_name(size)

        def measure(worker: Worker, found: Found, number: int) -> None:
            before = found.values[name]
            if not worker.contestant.vision or (before and before[0] > self._protocol.slow_seconds):
                return
            # A new picture every time: some runtimes keep the embeddings of those they have seen.
            picture = write_picture(self._folder, *size, number)
            seconds = worker.ask(do="vision", picture=str(picture))["seconds"]
            before.append(seconds)
            self._note(worker, found, name, f"{seconds:.2f} s")

        return measure

    def _note(self, worker: Worker, found: Found, name: str, value: str) -> None:
        peak_bytes = int(worker.ask(do="memory")["peak_bytes"])
        found.peak_bytes.setdefault(name, peak_bytes)  # later rounds' have the larger pictures in them
        peak = peak_bytes / 2**30
        self._say(f"{worker.contestant.name}: {name} {value}, peak memory {peak:.2f} GiB")


def to_json(found: Found) -> dict[str, Any]:
    """Plain data of one contestant."""
    return {
        "runtime": found.contestant.runtime,
        "precision": found.contestant.precision,
        "versions": found.versions,
        "load_seconds": found.load_seconds,
        "values": dict(found.values),
        "peak_bytes": found.peak_bytes,
        "error": found.error,
    }
