"""The vision tower on a device, whichever engine runs it: inputs go up, embeddings stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.backends.device.steps import Tensor
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.graph_format import COS, PATCHES, SIN, VISUAL_EMBEDDINGS
from qwen2vl_rt.processing.device_frames import DevicePatches


@dataclass(frozen=True, eq=False)
class DeviceEmbeddings:
    """Visual embeddings of pictures of one size, float32 [count, tokens, width], in a device's memory."""

    block: _core.DeviceBlock
    shape: tuple[int, int, int]

    def visual(self, begin: int, end: int) -> _core.DeviceVisual:
        """Pictures (or frame pairs of one video) `begin` to `end`, as a request takes them."""
        _, tokens, width = self.shape
        return _core.DeviceVisual(self.block, begin * tokens * width * 4, (end - begin) * tokens, width)

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits."""
        embeddings = np.empty(self.shape, np.float32)
        self.block.download(embeddings)
        return embeddings


class DeviceVisionTower(ABC):
    """Runs the vision tower on a device: see `backends.cpu.executors.CpuVision`.

    Args:
        device: whose memory holds patches and embeddings.
        geometry: the model's.
        dtype: of patches and tables.
    """

    def __init__(self, device: _core.Device, geometry: Geometry, dtype: np.dtype) -> None:
        self._device = device
        self._dtype = np.dtype(dtype)
        self._merged_patches = geometry.vision.merge_size**2
        self._hidden_size = geometry.decoder.hidden_size
        self._embeddings = _core.BlockPool(device)
        self._inputs: dict[str, _core.DeviceBlock] = {}  # kept from call to call, and grown

    def runs(self, n: int, count: int) -> list[tuple[int, int]]:
        """How N pictures of `count` patches are parted in runs, `begin` to `end`: all in one, by default."""
        return [(0, n)]

    @abstractmethod
    def enqueue(self, tensors: Sequence[Tensor]) -> None:
        """Queue a run over `patches`, `cos`, `sin` and `visual_embeddings` (float32), each [N, ...]."""

    def encode(
        self, patches: np.ndarray | DevicePatches, cos: np.ndarray, sin: np.ndarray
    ) -> DeviceEmbeddings:
        """Encode N equal-size pictures or frame pairs: patches [N, P, values], tables [P, head_dim / 2].

        Patches that are on the device already stay there; the embeddings do, too. Returns when the work is
        queued: what is queued behind it may read them.
        """
        n, count, _ = patches.shape
        runs = self.runs(n, count)
        most = max(end - begin for begin, end in runs)
        tables = [
            self._upload(name, np.broadcast_to(table, (most, *table.shape)))
            for name, table in ((COS, cos), (SIN, sin))
        ]
        tokens = count // self._merged_patches
        row = 4 * tokens * self._hidden_size
        embeddings = self._embeddings.take(n * row)
        for begin, end in runs:
            size = end - begin
            if isinstance(patches, DevicePatches):  # of one picture
                inputs = [Tensor(PATCHES, patches.shape, patches.block.pointer)]
            else:  # each run's where the last one's were: it is queued behind it
                inputs = [self._upload(PATCHES, patches[begin:end])]
            inputs += [table._replace(shape=(size, *table.shape[1:])) for table in tables]
            shape, pointer = (size, tokens, self._hidden_size), embeddings.pointer + begin * row
            self.enqueue([*inputs, Tensor(VISUAL_EMBEDDINGS, shape, pointer, output=True)])
        return DeviceEmbeddings(embeddings, (n, tokens, self._hidden_size))

    def _upload(self, name: str, array: np.ndarray) -> Tensor:
        array = np.ascontiguousarray(array, self._dtype)
        if name not in self._inputs or self._inputs[name].bytes < array.nbytes:
            self._inputs[name] = self._device.allocate(array.nbytes)
        self._inputs[name].upload(array.reshape(-1).view(np.uint8))
        return Tensor(name, array.shape, self._inputs[name].pointer)
