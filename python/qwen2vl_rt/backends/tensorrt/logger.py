"""What TensorRT says while it works: its errors for our messages, its memory figures for the report."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, Protocol

# In the log of every build, once an optimization profile, in bytes (the weights once an engine). TensorRT
# 10.3 leaves the unit out.
ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
WEIGHTS = re.compile(r"Total Weights Memory: (\d+)")


class Logger(Protocol):
    """A TensorRT logger that keeps what it is told until `take`."""

    def take(self) -> list[tuple[int, str]]:
        """Severity (0 internal error, 1 error, 2 warning, 3 info) and text of each message since the last
        call.
        """


def make_logger(module: ModuleType) -> Any:
    """A logger for one edition: the base class is the edition's own."""

    class _Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._messages: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(module.ILogger.INFO):
                self._messages.append((int(severity), message))

        def take(self) -> list[tuple[int, str]]:
            messages, self._messages = self._messages, []
            return messages

    return _Logger()


def first_error(messages: list[tuple[int, str]]) -> str | None:
    """The first error's text in one line, or None."""
    return next((" ".join(text.split()) for severity, text in messages if severity <= 1), None)


def figures(messages: list[tuple[int, str]], pattern: re.Pattern[str]) -> list[int]:
    """The numbers that `pattern` captures, in order."""
    return [int(match[1]) for _severity, text in messages if (match := pattern.search(text))]
