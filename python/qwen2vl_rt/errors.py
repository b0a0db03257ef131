"""The project's exceptions: one family, so that `except Qwen2VLError` catches all of it.

Each message says what was wrong, with the offending value, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen2vl_rt.answer import Answer


class Qwen2VLError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(Qwen2VLError, ValueError):
    """A prompt, message, picture, video or option that cannot be used. The session stays usable.

    Attributes:
        answers: from `generate_batch`, the answers to the prompts before the group that holds this one.
    """

    answers: tuple[Answer, ...] = ()


class PictureError(InputError):
    """A picture that cannot be read or prepared."""


class VideoError(InputError):
    """A video that cannot be read or sampled."""


class PromptTooLongError(InputError):
    """Prompt and answer together do not fit the session's cache (`max_length`)."""


class CheckpointError(Qwen2VLError):
    """A checkpoint that is incomplete, damaged or of another architecture."""


class BundleError(Qwen2VLError):
    """A bundle that is incomplete, damaged or of an unknown schema version."""


class MemoryLimitError(Qwen2VLError):
    """The planned memory of a session, of a build or of a self-check exceeds what it may use."""


class BackendError(Qwen2VLError):
    """An inference engine that is missing, or that failed."""


class EngineRefusedError(BackendError):
    """A TensorRT engine whose numbers are not the model's: its self-check says what differed."""
