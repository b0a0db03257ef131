"""Typed reading of JSON that others wrote: a wrong type is an error of ours that names the entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_REQUIRED = object()
_LARGEST = 2**40  # no size or id of a model comes near; keeps products of a few of them far from overflow


class Fields:
    """One JSON object, its place in the file (for messages) and the error class to raise."""

    def __init__(self, value: Any, where: str, error: type[Exception]):
        if not isinstance(value, dict):
            raise error(f"{where}: expected an object, found {_short(value)}")
        self.value, self.where, self.error = value, where, error

    def has(self, name: str) -> bool:
        """Return whether the entry is there and not null."""
        return self.value.get(name) is not None

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return the raw entry; null counts as absent."""
        if self.has(name):
            return self.value[name]
        if default is _REQUIRED:
            raise self.error(f"{self.where}: {name} is missing")
        return default

    def child(self, name: str) -> Fields:
        """Return the object under `name`."""
        return Fields(self.get(name), f"{self.where}: {name}", self.error)

    def integer(self, name: str, default: Any = _REQUIRED, least: int = 0) -> int:
        """Return an integer of at least `least`."""
        return self._checked_integer(self.get(name, default), name, least)

    def integers(self, name: str, least: int = 0) -> tuple[int, ...]:
        """Return a list's integers of at least `least`."""
        value = self.get(name)
        if not isinstance(value, list):
            self._refuse(name, "a list of integers", value)
        return tuple(self._checked_integer(item, name, least) for item in value)

    def size(self, name: str, default: Any = _REQUIRED) -> int:
        """Return an integer of at least 1."""
        return self.integer(name, default, least=1)

    def id(self, name: str, default: Any = _REQUIRED) -> int:
        """Return a token id."""
        return self.integer(name, default)

    def ids(self, name: str) -> tuple[int, ...]:
        """Return token ids; one id alone stands for a list of one."""
        value = self.get(name)
        values = value if isinstance(value, list) else [value]
        if not values:
            self._refuse(name, "at least one token id", value)
        return tuple(self._checked_integer(item, name, 0) for item in values)

    def three(self, name: str) -> tuple[int, int, int]:
        """Return three integers of at least 0."""
        value = self.get(name)
        if not isinstance(value, list | tuple) or len(value) != 3:
            self._refuse(name, "three integers", value)
        a, b, c = (self._checked_integer(item, name, 0) for item in value)
        return a, b, c

    def children(self, name: str) -> list[Fields]:
        """Return the objects in the list under `name`."""
        value = self.get(name)
        if not isinstance(value, list):
            self._refuse(name, "a list of objects", value)
        return [Fields(item, f"{self.where}: {name}", self.error) for item in value]

    def number(self, name: str) -> float:
        """Return a finite number of at least 0."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LARGEST:
            self._refuse(name, "a number of at least 0", value)
        return float(value)

    def positive(self, name: str, default: Any = _REQUIRED) -> float:
        """Return a finite number above 0."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, "a number above 0", value)
        if not 0 < value < _LARGEST or not math.isfinite(value):
            self._refuse(name, "a number above 0", value)
        return float(value)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """Return true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self._refuse(name, "true or false", value)
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """Return a string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            self._refuse(name, "a string", value)
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return one of these strings."""
        value = self.text(name)
        if value not in choices:
            self._refuse(name, f"one of {', '.join(choices)}", value)
        return value

    def _checked_integer(self, value: Any, name: str, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
            self._refuse(name, f"an integer of at least {least}", value)
        return value

    def _refuse(self, name: str, expected: str, value: Any) -> None:
        raise self.error(f"{self.where}: {name} is {_short(value)}, expected {expected}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
