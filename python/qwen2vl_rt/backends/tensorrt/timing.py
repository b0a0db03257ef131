"""TensorRT's timing cache: kernels that were timed on this machine once are not timed again.

Only the full TensorRT times kernels when it builds; TensorRT for RTX chooses them where the engine runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.backends.tensorrt.files import write_whole


def timing_file(folder: Path, edition: Edition) -> Path | None:
    """The edition's timing cache among the engines in `folder`; None where there is none to keep."""
    if edition.builds_for_others:
        return None
    return folder / f"timing.{edition.module_name}.{edition.version}.cache"


def use_timings(config: Any, file: Path) -> None:
    """Start a build from what earlier ones timed; a file that does not fit TensorRT or GPU is left out."""
    known = file.read_bytes() if file.is_file() else b""
    for data in (known, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def keep_timings(config: Any, file: Path) -> None:
    """Write what is known after a build."""
    cache = config.get_timing_cache()
    if cache is not None:
        write_whole(file, cache.serialize())
