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
    """A `network.Linear` that quantizes on its way and collects the tensors in `stored`, by their names."""

    stored: dict[str, np.ndarray]

    def __call__(self, group: Group, x: np.ndarray) -> list[np.ndarray]:
        """See `network.Linear`."""


MakeLinear = Callable[[Parameters], QuantizingLinear]


class VisionWalk:
    """The vision tower's blocks, then its merger; with `exact` the tower without rounding beside them."""

    def __init__(
        self,
        geometry: Geometry,
        parameters: Parameters,
        calibration: Calibration,
        make: MakeLinear,
        exact: bool = False,
    ):
        self._geometry, self._parameters = geometry.vision, parameters
        self._calibration, self._make = calibration, make
        self._x = parameters.product("patch_embedding", calibration.patches)
        self._exact = self._x if exact else None
        self._layers = iter([f"blocks.{i}" for i in range(geometry.vision.depth)] + ["merger"])

    def next(self) -> dict[str, np.ndarray]:
        """Quantize the next layer and return what is to be stored of it, by tensor names."""
        layer, linear = next(self._layers), self._make(self._parameters)
        self._x = self._run(layer, self._x, linear)
        if self._exact is not None:
            self._exact = self._run(layer, self._exact, network.float_linear(self._parameters))
        return linear.stored

    def _run(self, layer: str, x: np.ndarray, linear: network.Linear) -> np.ndarray:
        g, parameters, at = self._geometry, self._parameters, self._calibration.pictures
        if layer == "merger":
            return network.vision_merger(x, g, parameters, linear)
        return network.vision_block(x, int(layer.split(".")[1]), g, parameters, at, linear)

    @property
    def embeddings(self) -> list[np.ndarray]:
        """Visual embeddings of the calibration's pictures, each [P / 4, H], once the walk is done: the
        quantized tower's, then with `exact` those of the tower without rounding.
        """
        return [self._x] if self._exact is None else [self._x, self._exact]


class DecoderWalk:
    """The decoder's layers; the head's table is not quantized here."""

    def __init__(
        self,
        geometry: DecoderGeometry,
        parameters: Parameters,
        calibration: Calibration,
        streams: list[np.ndarray],
        make: MakeLinear,
    ):
        """`streams`: inputs of the first layer, each [T, H]; `make`'s linear gets them one after another."""
        self._geometry, self._parameters, self._make = geometry, parameters, make
        self._x, self._at = np.concatenate(streams), calibration.sequences.repeated(len(streams))
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
    checkpoint: Checkpoint, calibration: Calibration, table: Weight, visual: list[np.ndarray]
) -> list[np.ndarray]:
    """Return the decoder's inputs for all calibration tokens, float32 [T, H] each: the first with rows of the
    table as the bundle has it, a second with the checkpoint's own, and `visual` embeddings [P / 4, H], first
    and second, in the place of the pads.
    """
    ids, pads = calibration.token_ids, calibration.pads
    unique, where = np.unique(ids, return_inverse=True)
    exact = np.concatenate([checkpoint.read_rows(table, int(i), int(i) + 1) for i in unique])
    exact = exact.astype(np.float32)
    found = []
    for rows, embeddings in zip((nearest_blocks(exact, 8).dequantized(), exact), visual, strict=False):
        x = rows[where.reshape(-1)]
        x[pads] = embeddings[calibration.shown]
        found.append(x)
    return found


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
