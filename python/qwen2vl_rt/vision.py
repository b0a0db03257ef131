"""From patches to visual embeddings: which pictures share a call of the vision tower, and their tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.calls import raise_if_cancelled
from qwen2vl_rt.geometry import VisionGeometry
from qwen2vl_rt.processing.device_frames import DevicePatches
from qwen2vl_rt.processing.processor import Visual

# Small frames of one size share a call up to this many patches; a larger one goes alone. It bounds the
# activations that a video adds to what one picture needs.
PATCHES_PER_CALL = 4096


class Embeddings(Protocol):
    """Visual embeddings of N frames that stay in a device's memory, [N, tokens, hidden_size]."""

    def visual(self, begin: int, end: int) -> _core.DeviceVisual:
        """Frames `begin` to `end`, as a request takes them."""

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits for the device."""


class VisionExecutor(Protocol):
    """An engine's vision graph: see `backends.cpu.executors.CpuVision.encode`."""

    def encode(
        self, patches: np.ndarray | DevicePatches, cos: np.ndarray, sin: np.ndarray
    ) -> np.ndarray | Embeddings:
        """Patches [N, P, values] to embeddings [N, P / merge_size^2, hidden_size]."""


@dataclass
class _Part:
    """Consecutive frames of one visual, `begin` to `end` of a call's result."""

    embeddings: np.ndarray | Embeddings
    begin: int
    end: int

    def numpy(self) -> np.ndarray:
        whole = self.embeddings if isinstance(self.embeddings, np.ndarray) else self.embeddings.numpy()
        part = whole[self.begin : self.end]
        return part.reshape(-1, part.shape[-1])


class VisionTower:
    """Encodes pictures and videos of any sizes.

    The tower attends within one picture or frame pair only, so each is encoded by itself, exactly; those of
    one size are batched, which changes nothing but the speed.
    """

    def __init__(self, executor: VisionExecutor, geometry: VisionGeometry) -> None:
        self._executor = executor
        self._geometry = geometry

    def encode(
        self, visuals: Sequence[Visual], cancel: _core.CancelToken | None = None
    ) -> list[np.ndarray | _core.DeviceVisual]:
        """Visual embeddings in the order given, each float32 [t * h * w / merge_size^2, hidden_size].

        Those that a device has computed in one call stay there. `cancel` is looked at before each call.

        Raises:
            CancelledError: it was set.
        """
        encoded: list[list[_Part]] = [[] for _ in visuals]
        frames_by_size: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for index, visual in enumerate(visuals):
            t, h, w = visual.grid_thw
            if isinstance(visual.patches, DevicePatches):
                raise_if_cancelled(cancel)
                embeddings = self._executor.encode(visual.patches, *self._rope_table(h, w))
                encoded[index].append(_Part(embeddings, 0, 1))
                continue
            frames_by_size[h, w] += [(index, frame) for frame in range(t)]

        for (h, w), frames in frames_by_size.items():
            cos, sin = self._rope_table(h, w)
            per_call = max(1, PATCHES_PER_CALL // (h * w))
            for start in range(0, len(frames), per_call):
                raise_if_cancelled(cancel)
                group = frames[start : start + per_call]
                patches = np.stack([visuals[index].patches[frame] for index, frame in group])
                embeddings = self._executor.encode(patches, cos, sin)
                for place, (index, frame) in enumerate(group):
                    if frame == 0 or place == 0:
                        encoded[index].append(_Part(embeddings, place, place))
                    encoded[index][-1].end = place + 1
        return [_whole(parts) for parts in encoded]

    def _rope_table(self, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
        geometry = self._geometry
        return _core.vision_rope_table(h, w, geometry.head_dim, geometry.merge_size, geometry.rope_theta)


def _whole(parts: list[_Part]) -> np.ndarray | _core.DeviceVisual:
    if len(parts) == 1 and not isinstance(parts[0].embeddings, np.ndarray):
        return parts[0].embeddings.visual(parts[0].begin, parts[0].end)
    return np.concatenate([part.numpy() for part in parts])
