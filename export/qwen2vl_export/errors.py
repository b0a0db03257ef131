"""What can go wrong while exporting, beside the checkpoint itself (`qwen2vl_rt.errors.CheckpointError`)."""

from qwen2vl_rt.errors import Qwen2VLError


class ExportError(Qwen2VLError):
    """A bundle that cannot be written: the disk is full, the output exists, the folder is not writable."""


class DownloadError(Qwen2VLError):
    """A checkpoint that cannot be fetched from the hub."""
