"""Fetching the published checkpoints from the Hugging Face hub."""

from __future__ import annotations

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

# What an export reads; the model card and pictures of the repository are left there.
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]


def download(size: str, quiet: bool = False) -> Path:
    """Fetch a published checkpoint ("2b", "7b", "72b") and return its folder in the hub's cache.

    What the cache holds is not fetched again, and an interrupted file goes on where it stopped. HF_ENDPOINT,
    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to `huggingface_hub`. Raises DownloadError.
    """
    from huggingface_hub import snapshot_download  # slow to import, and not needed for a local checkpoint
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
    repository = SIZES[size].repository
    try:
        return Path(snapshot_download(repository, allow_patterns=_PATTERNS))
    except Exception as error:
        raise DownloadError(f"{repository} could not be fetched: {error}") from error
