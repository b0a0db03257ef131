"""Walking a graph's layers from its input on, quantizing one at a time on what the ones before give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import Weight
from qwen2vl_export.quantize import network
from qwen2vl_export.quantize.calibration import Calibration
from qwen2vl_export.quantize.forms import nearest_blocks
from qwen2vl_export.quantize.network import Group
from qwen2vl_export.quantize.parameters import Parameters
from qwen2vl_rt.geometry import DecoderGeometry, Geometry


class QuantizingLinear(Protocol):
    """A `network.Linear` that quantizes on its way and collects the tensors in `stored`, by their names.

    Its inputs are `streams` times the calibration's tokens.
    """

    streams: int
    stored: dict[str, np.ndarray]

    def __call__(self, group: Group, x: np.ndarray) -> list[np.ndarray]:
        """See `network.Linear`."""


MakeLinear = Callable[[Parameters], QuantizingLinear]


class VisionWalk:
    """The vision tower's blocks, then its merger."""

    def __init__(
        self, geometry: Geometry, parameters: Parameters, calibration: Calibration, make: MakeLinear
    ):
        self._geometry, self._parameters = geometry.vision, parameters
        self._calibration, self._make = calibration, make
        self._x = parameters.product("patch_embedding", calibration.patches)
        self._layers = iter([f"blocks.{i}" for i in range(geometry.vision.depth)] + ["merger"])
        self.embeddings: np.ndarray | None = None
        """Visual embeddings of the calibration's pictures, [P / 4, H], once the walk is done."""

    def next(self) -> dict[str, np.ndarray]:
        """Quantize the next layer and return what is to be stored of it, by tensor names."""
        layer, linear = next(self._layers), self._make(self._parameters)
        g, parameters, at = self._geometry, self._parameters, self._calibration.pictures
        if layer == "merger":
            self.embeddings = network.vision_merger(self._x, g, parameters, linear)
        else:
            self._x = network.vision_block(self._x, int(layer.split(".")[1]), g, parameters, at, linear)
        return linear.stored


class DecoderWalk:
    """The decoder's layers; the head's table is not quantized here."""

    def __init__(
        self,
        geometry: DecoderGeometry,
        parameters: Parameters,
        calibration: Calibration,
        embeddings: np.ndarray,
        make: MakeLinear,
    ):
        self._geometry, self._parameters, self._make = geometry, parameters, make
        streams = make(parameters).streams
        self._x, self._at = np.tile(embeddings, (streams, 1)), calibration.sequences.repeated(streams)
        self._layer = 0

    def next(self) -> dict[str, np.ndarray]:
        """Quantize the next layer and return what is to be stored of it, by tensor names."""
        linear = self._make(self._parameters)
        self._x = network.decoder_layer(
            self._x, self._layer, self._geometry, self._parameters, self._at, linear
        )
        self._layer += 1
        return linear.stored


def input_embeddings(
    checkpoint: Checkpoint, calibration: Calibration, table: Weight, visual: np.ndarray
) -> np.ndarray:
    """Return the decoder's input for all calibration tokens, float32 [T, H]: rows of the table as the bundle
    has it, and `visual` embeddings [P / 4, H] in the place of the pads.
    """
    ids, special = calibration.token_ids, checkpoint.geometry.special_ids
    unique, where = np.unique(ids, return_inverse=True)
    rows = np.concatenate([checkpoint.read_rows(table, int(i), int(i) + 1) for i in unique]).astype(
        np.float32
    )
    x = nearest_blocks(rows, 8).dequantized()[where.reshape(-1)]
    x[(ids == special.image_pad) | (ids == special.video_pad)] = visual[calibration.shown]
    return x


def layer_of(weights: Iterable[Weight]) -> dict[str, str]:
    """Return the layer (`layers.3`, `blocks.0`, `merger`) that each weight of a walk belongs to."""
    found = {}
    for weight in weights:
        first, second, *_ = weight.name.split(".")
        if first in ("layers", "blocks"):
            found[weight.name] = f"{first}.{second}"
        elif first in ("merger", "visual_embeddings"):
            found[weight.name] = "merger"
    return found
