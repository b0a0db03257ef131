"""What the stages of `make bench-gpu` write: figures beside the bounds that the GPU's limits set them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class Figure:
    """One median, and the bound that the machine's limits set it, in the same unit."""

    name: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def share(self) -> float | None:
        """Of the bound reached: bound over value for times, value over bound for rates."""
        if self.bound is None:
            return None
        return self.bound / self.value if self.unit in ("s", "us") else self.value / self.bound


class Figures:
    """What a stage measured, written to `output` after each figure: what was found before something went
    wrong is kept.
    """

    def __init__(self, output: Path) -> None:
        self.failed: dict[str, str] = {}
        """What went wrong, by what was tried."""
        self._progress: dict[str, str] = {}
        self._figures: list[Figure] = []
        self._output = output

    def add(self, name: str, value: float, unit: str, bound: float | None = None) -> None:
        """Print and write a figure."""
        self._figures.append(Figure(name, value, unit, bound))
        print(f"  {name}: {value:.4g} {unit}", flush=True)
        self.write()

    def fail(self, name: str, error: Exception) -> None:
        """Print and write what went wrong."""
        self.failed[name] = f"{type(error).__name__}: {error}"
        print(f"  {name}: {self.failed[name]}", flush=True)
        self.write()

    def note(self, name: str, progress: str) -> None:
        """Write how far something is that has no figure yet."""
        self._progress[name] = progress
        self.write()

    def write(self) -> None:
        """All so far."""
        figures = [asdict(figure) | {"share": figure.share} for figure in self._figures]
        result = {"figures": figures, "failed": self.failed, "progress": self._progress}
        write_json(self._output, {name: part for name, part in result.items() if part or name == "figures"})


def read_limits(file: Path | None) -> dict[str, Any]:
    """The limits that the stage of that name wrote; none where it failed."""
    return json.loads(file.read_text()).get("limits", {}) if file is not None and file.exists() else {}


def write_json(output: Path, result: dict[str, Any]) -> None:
    """Write a stage's result."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
