"""A runtime for Qwen2-VL: pictures, video and text in, text and boxes out.

import qwen2vl_rt
with qwen2vl_rt.Session("bundle") as session:
    answer = session.generate("What is on the desk?", images=["desk.jpg"])
    print(answer.text, answer.boxes, answer.timings)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qwen2vl_rt._core import CancelToken, __version__
from qwen2vl_rt.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    EngineRefusedError,
    InputError,
    MemoryLimitError,
    PictureError,
    PromptTooLongError,
    Qwen2VLError,
    VideoError,
)

if TYPE_CHECKING:
    from qwen2vl_rt.answer import Answer, Timings, TokenLogprob, Usage
    from qwen2vl_rt.boxes import Box, draw_boxes
    from qwen2vl_rt.plan import MemoryPlan
    from qwen2vl_rt.session import Session
    from qwen2vl_rt.stream import AnswerStream

# Loaded when first used: the exporter and the errors need neither ONNX Runtime nor Pillow.
_LAZY = {
    "Answer": "qwen2vl_rt.answer",
    "AnswerStream": "qwen2vl_rt.stream",
    "Box": "qwen2vl_rt.boxes",
    "MemoryPlan": "qwen2vl_rt.plan",
    "Session": "qwen2vl_rt.session",
    "Timings": "qwen2vl_rt.answer",
    "TokenLogprob": "qwen2vl_rt.answer",
    "Usage": "qwen2vl_rt.answer",
    "draw_boxes": "qwen2vl_rt.boxes",
}

__all__ = [
    "Answer",
    "AnswerStream",
    "BackendError",
    "Box",
    "BundleError",
    "CancelToken",
    "CheckpointError",
    "EngineRefusedError",
    "InputError",
    "MemoryLimitError",
    "MemoryPlan",
    "PictureError",
    "PromptTooLongError",
    "Qwen2VLError",
    "Session",
    "Timings",
    "TokenLogprob",
    "Usage",
    "VideoError",
    "__version__",
    "draw_boxes",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qwen2vl_rt' has no attribute {name!r}")
