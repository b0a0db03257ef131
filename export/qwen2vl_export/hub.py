"""Fetching the published checkpoints from the Hugging Face hub."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from qwen2vl_export.errors import DownloadError


@dataclass(frozen=True)
class Published:
    """A checkpoint on the hub."""

    name: str

    @property
    def repository(self) -> str:
        """Its id on the hub."""
        return f"Qwen/{self.name}"


SIZES = {
    "2b": Published("Qwen2-VL-2B-Instruct"),
    "7b": Published("Qwen2-VL-7B-Instruct"),
    "72b": Published("Qwen2-VL-72B-Instruct"),
}

# What an export reads; the rest of a repository (model card, other formats) is left there.
_PATTERNS = ["*.safetensors", "*.json", "*.jinja"]


def download(size: str, quiet: bool = False) -> Path:
    """Fetch a published checkpoint ("2b", "7b", "72b") and return its folder in the hub's cache.

    What the cache holds is not fetched again, and an interrupted file goes on where it stopped. HF_ENDPOINT,
    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to `huggingface_hub`. `quiet` shows no
    progress bars. Raises DownloadError.
    """
    # Imported late: it is slow to import, and a local checkpoint does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
    repository = SIZES[size].repository
    try:
        return Path(snapshot_download(repository, allow_patterns=_PATTERNS))
    except Exception as error:  # the client's own errors, and those of the HTTP library below it
        raise DownloadError(f"{repository} could not be fetched: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say in a sentence what went wrong and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    endpoint, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    kept = "run the command again: what was fetched is kept"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {cache} is full; make room, or move HF_HOME to another disk, then {kept}"
    # The client wraps what went wrong on the network into "not in the cache".
    behind = error
    while behind is not None and getattr(behind, "response", None) is None:
        behind = behind.__cause__
    if isinstance(behind, RepositoryNotFoundError):
        return f"{endpoint} has no such repository, or not for your HF_TOKEN"
    if isinstance(behind, HfHubHTTPError) and behind.response.status_code in (401, 403):
        return f"{endpoint} refuses with status {behind.response.status_code}; check HF_TOKEN"
    if isinstance(behind, HfHubHTTPError):
        return f"{endpoint} answered with status {behind.response.status_code}; {kept}"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set and {cache} does not hold it"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{endpoint} cannot be reached and {cache} does not hold it; check the network and HF_ENDPOINT, "
            "or pass a folder with --checkpoint"
        )
    return f"{_first_line(error)}; {kept}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
