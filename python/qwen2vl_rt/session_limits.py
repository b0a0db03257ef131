"""What a session is asked to hold, and what it is built for."""

from __future__ import annotations

from dataclasses import dataclass

from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.options import check_session_options
from qwen2vl_rt.processing.pixels import PixelSettings

DEFAULT_MAX_LENGTH = 8192
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class SessionLimits:
    """What a session is built for; together with the bundle this fixes its memory."""

    max_length: int
    """Positions a cache row holds: prompt, visual tokens and answer."""
    max_batch: int
    """Cache rows: answers generated side by side."""
    max_pixels: int
    """The largest picture (or video frame) after resizing, in pixels."""
    prefill_chunk: int
    """Prompt tokens computed in one decoder step."""


@dataclass(frozen=True)
class AskedLimits:
    """What a session's caller asks for: fields of `SessionLimits`, None where anything will do.

    Raises:
        InputError: a limit that is no whole number, or below 1.
    """

    max_length: int | None = None
    max_batch: int = 1
    max_pixels: int | None = None
    prefill_chunk: int = PREFILL_CHUNK

    def __post_init__(self) -> None:
        for name, value in check_session_options(**vars(self)).items():
            object.__setattr__(self, name, value)

    def for_bundle(self, bundle: Bundle) -> SessionLimits:
        """The limits of a session, with the defaults filled in from the bundle.

        Raises:
            InputError: max_pixels below the smallest picture's.
        """
        max_pixels = self.max_pixels
        if max_pixels is None:
            max_pixels = PixelSettings.from_folder(bundle.path).max_pixels
        least = bundle.geometry.vision.pixels_per_token
        if max_pixels < least:
            raise InputError(f"max_pixels={max_pixels} leaves no picture: one has {least} pixels at least")
        max_length = DEFAULT_MAX_LENGTH if self.max_length is None else self.max_length
        return SessionLimits(max_length, self.max_batch, max_pixels, self.prefill_chunk)
