"""What a self-check keeps beside the engines: the cpu backend's values, and what it found."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qwen2vl_rt.backends.tensorrt.check_inputs import check_steps, expected_values, picture_sizes
from qwen2vl_rt.backends.tensorrt.check_memory import require_memory
from qwen2vl_rt.backends.tensorrt.files import write_whole
from qwen2vl_rt.backends.tensorrt.find import EngineSet
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.session_limits import SessionLimits

VERSION = 3
"""Of the check: its inputs, and what is compared how."""


@dataclass(frozen=True)
class CheckResult:
    """What a self-check found."""

    machine: str
    """The GPU and driver that it ran on."""
    engines: list[str]
    """Names of the files, in the order of their graphs' names."""
    allowed: float
    figures: dict[str, float]
    """By comparison: the largest error of a row of logits or of a visual embedding, see `error`. Of the
    largest picture: infinity if its embeddings are not finite, else 0."""
    version: int = VERSION

    @property
    def differing(self) -> dict[str, float]:
        """The comparisons that failed."""
        return {name: value for name, value in self.figures.items() if not value <= self.allowed}

    @property
    def passed(self) -> bool:
        """Whether all comparisons are within what is allowed."""
        return not self.differing

    def __str__(self) -> str:
        lines = [f"{name} {value:.3g}" for name, value in self.figures.items()]
        return f"{', '.join(lines)} (allowed: {self.allowed:g})"


def keep_expected(
    bundle: Bundle, limits: SessionLimits, number_format: str, folder: Path, threads: int = 0
) -> dict[str, list[np.ndarray]]:
    """The cpu backend's values for engines of these limits and this arithmetic ("fp32", "bf16", "fp16").

    They are read from `folder`, or computed and written there.

    Raises:
        ImportError: they have to be computed, without ONNX Runtime.
        MemoryLimitError: they have to be computed, and take more memory than is available.
    """
    path = expected_file(bundle, limits, number_format, folder)
    damaged = (ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(OSError, *damaged), np.load(path) as stored:
        names = json.loads(str(stored["names"]))
        return {name: [stored[f"{name}.{index}"] for index in range(count)] for name, count in names.items()}
    require_memory(bundle, limits)
    expected = expected_values(bundle, limits, format_named(number_format).numpy, threads)
    arrays = {f"{name}.{i}": array for name, values in expected.items() for i, array in enumerate(values)}
    names = json.dumps({name: len(values) for name, values in expected.items()})
    with contextlib.suppress(OSError):  # a read-only folder: computed again next time
        folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.savez(file, names=np.array(names), **arrays)
        write_whole(path, file.getbuffer())
    return expected


def expected_file(bundle: Bundle, limits: SessionLimits, number_format: str, folder: Path) -> Path:
    """Where `keep_expected` keeps the values. The name depends on the bundle, the steps and pictures, and the
    inputs' number format.
    """
    vision = bundle.geometry.vision
    parts = [
        VERSION,
        {name: entry.sha256 for name, entry in bundle.files.items()},
        number_format,
        [asdict(step) for step in check_steps(limits)],
        picture_sizes(limits, vision.patch_size, vision.merge_size),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return folder / f"expected.{digest[:16]}.npz"


def result_file(chosen: EngineSet) -> Path:
    """Where the result of a check lies."""
    return chosen.files["decoder"].path.with_suffix(".check.json")


def stored_result(chosen: EngineSet, machine: str) -> CheckResult | None:
    """What a check of these engines on this machine found earlier; None if there was none."""
    try:
        result = CheckResult(**json.loads(result_file(chosen).read_text()))
        if result.version != VERSION or result.machine != machine:
            return None
        files = [chosen.files[graph].path.name for graph in sorted(chosen.files)]
        return result if result.engines == files and isinstance(result.figures, dict) else None
    except (OSError, ValueError, TypeError):
        return None


def store_result(chosen: EngineSet, result: CheckResult) -> None:
    """Write a result beside the decoder's engine; where that can't be, the next session checks again."""
    with contextlib.suppress(OSError):
        text = json.dumps(asdict(result), indent=1)
        write_whole(result_file(chosen), f"{text}\n".encode())
