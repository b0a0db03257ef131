"""Quantization on calibration inputs: a bundle's weights, a layer quantized when its first tensor is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.graph import Graph, Weight
from qwen2vl_export.quantize.calibration import load_calibration
from qwen2vl_export.quantize.forms import is_kept
from qwen2vl_export.quantize.int4 import Int4Linear
from qwen2vl_export.quantize.int8 import Int8Linear
from qwen2vl_export.quantize.nearest import NearestSource
from qwen2vl_export.quantize.parameters import Parameters
from qwen2vl_export.quantize.walk import DecoderWalk, MakeLinear, VisionWalk, input_embeddings, layer_of
from qwen2vl_rt.bundle import VISION_WEIGHTS


class CalibratedSource:
    """Gives a bundle's weights; the vision tower's file comes before the decoders', whose calibration sees
    its embeddings.

    In memory at a time: the calibration's activations, one layer's tensors, and a few pieces of a matrix.
    """

    def __init__(self, checkpoint: Checkpoint, graphs: Iterable[Graph], table: Weight, folder: Path):
        self._checkpoint, self._table = checkpoint, table
        self._calibration = load_calibration(folder, checkpoint)
        self._nearest = NearestSource(checkpoint)  # for what is not in a walk
        self._graphs = {graph.weights_file: graph for graph in graphs}
        self._layers = {
            file: {} if _kept(checkpoint, graph) else layer_of(graph.weights)
            for file, graph in self._graphs.items()
        }
        self._walks: dict[str, VisionWalk | DecoderWalk] = {}
        self._streams: list[np.ndarray] = []
        self._stored: dict[str, np.ndarray] = {}  # of the present layer
        self._present: tuple[str, str] | None = None

    def blocks(self, weight: Weight) -> Iterator[np.ndarray]:
        """Yield a weight's bytes."""
        layer = self._layers.get(weight.file, {}).get(weight.name)
        if layer and self._present != (weight.file, layer):
            self._stored, self._present = self._walk(weight.file).next(), (weight.file, layer)
        if weight.name in self._stored:
            yield self._stored.pop(weight.name)
        else:
            yield from self._nearest.blocks(weight)

    def _walk(self, file: str) -> VisionWalk | DecoderWalk:
        """Return the walk through a file's graph, at its start if it is new."""
        if file not in self._walks:
            graph, geometry = self._graphs[file], self._checkpoint.geometry
            parameters = Parameters(self._checkpoint, graph.weights)
            if file == VISION_WEIGHTS:
                exact = any(
                    graph.linear_form == "int4" and self._layers[name] for name, graph in self._graphs.items()
                )
                self._walks[file] = VisionWalk(geometry, parameters, self._calibration, Int8Linear, exact)
            else:
                make, streams = self._decoder_linear(graph)
                self._walks[file] = DecoderWalk(
                    geometry.decoder, parameters, self._calibration, self._inputs()[:streams], make
                )
        return self._walks[file]

    def _decoder_linear(self, graph: Graph) -> tuple[MakeLinear, int]:
        """Return what makes a decoder graph's linear, and how many streams that takes."""
        if graph.linear_form == "int4":
            return partial(Int4Linear, weights=self._calibration.weights), 2
        # Two decoders on one cache must agree on what a value is, so none may scale its own.
        if len(self._graphs) > 2:
            return partial(Int8Linear, may_fold=lambda name: not name.endswith(".attention.v")), 1
        return Int8Linear, 1

    def _inputs(self) -> list[np.ndarray]:
        if not self._streams:
            visual = self._walks[VISION_WEIGHTS].embeddings
            self._streams = input_embeddings(self._checkpoint, self._calibration, self._table, visual)
        return self._streams


def _kept(checkpoint: Checkpoint, graph: Graph) -> bool:
    """Return whether the checkpoint brought every 4-bit matrix of a graph: nothing is left to choose."""
    matrices = [
        w for w in graph.weights if w.element_type == TensorProto.UINT4 and w.name.endswith(".weight")
    ]
    return bool(matrices) and all(is_kept(checkpoint.packed.get(weight.source)) for weight in matrices)
