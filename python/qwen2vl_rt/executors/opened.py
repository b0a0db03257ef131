"""What a backend opens for a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwen2vl_rt import _core
from qwen2vl_rt.processing.device_frames import DeviceFrames
from qwen2vl_rt.vision import VisionExecutor


@dataclass(frozen=True)
class Opened:
    """A bundle's executors on one backend, loaded; their memory goes with the object."""

    decoder: _core.Decoder
    """With the KV cache."""
    vision: VisionExecutor
    least_chunk: int = 1
    """Tokens below which the decoder computes a prompt in another way than more of them."""
    device: _core.Device | None = None
    """The GPU, None on the CPU."""
    frames: DeviceFrames | None = None
    """What prepares pictures in the GPU's memory, None on the CPU."""
    keep: Callable[[], None] = lambda: None
    """Writes to disk what is worth keeping for the next session."""
