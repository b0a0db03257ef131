"""What a bundle's generation_config.json says that a call leaves open."""

from __future__ import annotations

import json
from pathlib import Path

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.errors import BundleError


def generation_defaults(file: Path) -> dict[str, float]:
    """Read `repetition_penalty`, above 0; 1 (off) where the file has none.

    Stop tokens are the manifest's; sampling is asked for by the call alone, so that greedy is the default.

    Raises:
        BundleError: the file cannot be read or holds something else.
    """
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON: {error}; export the checkpoint again") from error
    return {"repetition_penalty": Fields(value, str(file), BundleError).positive("repetition_penalty", 1.0)}
