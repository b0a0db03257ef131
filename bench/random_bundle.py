"""Write a bundle of a published size with random weights in seconds, for measuring speed and memory.

    python -m bench.random_bundle --size 72b --precision int4 --output DIR

Every layer's weights are those of layer 0 (the last layer's, where they have another form): the graph points
there, and the rest of the file is a hole that takes no room on the disk. An engine loads as many bytes as
from a real bundle; but TensorRT finds equal weights and stores them once: it needs `--distinct` layers. The
manifest's hashes are zeros, because nobody verifies it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from bench.random_checkpoint import PREPROCESSOR_CONFIG, PUBLISHED, published_config, with_ids_of
from bench.tiny import TINY
from qwen2vl_export.bundle_writer import BundleWriter
from qwen2vl_export.decoder import decoder_graph, embedding_weights, prefill_graph
from qwen2vl_export.graph import SCALE, ZERO_POINT, Weight
from qwen2vl_export.vision import vision_graph
from qwen2vl_export.weights import Places, layout
from qwen2vl_rt import __version__
from qwen2vl_rt.bundle import (
    CHAT_TEMPLATE,
    CONFIG,
    DECODER_GRAPH,
    EMBEDDING,
    GENERATION_CONFIG,
    MANIFEST,
    PRECISIONS,
    PREFILL_GRAPH,
    TOKENIZER,
    VISION_GRAPH,
    Bundle,
    FileEntry,
)
from qwen2vl_rt.bundle import (
    PREPROCESSOR_CONFIG as PREPROCESSOR_FILE,
)
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.number_formats import format_named

POOL = 2**22  # random numbers, repeated
LAYER = re.compile(r"^(layers|blocks)\.(\d+)\.")


class RandomNumbers:
    """Weights whose activations stay in a trained model's range, by element type."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._normal = rng.standard_normal(POOL, np.float32)
        self._bytes = rng.integers(0, 256, POOL, np.uint8)
        self._signed = rng.integers(-127, 128, POOL, np.int8)

    def blocks(self, weight: Weight, codes: int) -> Iterator[np.ndarray]:
        """Yield `weight.nbytes` bytes; `codes` is the element type of the matrix that a scale belongs to."""
        start = zlib.crc32(weight.name.encode())  # no two weights are equal
        pool = np.roll(self._pool(weight, codes), start).view(np.uint8)
        for begin in range(0, weight.nbytes, len(pool)):
            yield pool[: weight.nbytes - begin]

    def _pool(self, weight: Weight, codes: int) -> np.ndarray:
        spread = 1 / math.sqrt(weight.columns)
        if weight.name.endswith(ZERO_POINT):
            return np.full(POOL, 0x88 if weight.element_type == TensorProto.UINT4 else 128, np.uint8)
        if weight.name.endswith(SCALE):  # of codes that are uniform: their deviation is 4.6 or 73
            return np.full(POOL, spread / (4.6 if codes == TensorProto.UINT4 else 73), np.float32)
        if weight.element_type in (TensorProto.UINT4, TensorProto.UINT8):
            return self._bytes
        if weight.element_type == TensorProto.INT8:
            return self._signed
        if len(weight.shape) == 1:
            center = 1.0 if "norm" in weight.name or "ln" in weight.name else 0.0
            values = 0.02 * self._normal[: 2**20] + np.float32(center)
        else:
            values = self._normal * np.float32(spread)
        return values.astype(format_named(weight.element_type).numpy)


def write_random_bundle(
    folder: Path, config: dict[str, Any], precision: str, distinct: bool = False
) -> Bundle:
    """Write the bundle of a model with this config.json into `folder`, which must be new or empty; with
    `distinct` no two layers are equal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, generation = with_ids_of(TINY, config)
    geometry = Geometry.from_config(config, generation)
    graphs = {
        VISION_GRAPH: vision_graph(geometry.vision, geometry.decoder.hidden_size, precision),
        DECODER_GRAPH: decoder_graph(geometry.decoder, precision),
    }
    if (prefill := prefill_graph(geometry.decoder, precision)) is not None:
        graphs[PREFILL_GRAPH] = prefill
    files: dict[str, dict[str, Weight]] = {
        EMBEDDING: {weight.name: weight for weight in embedding_weights(geometry.decoder, precision)}
    }
    for graph in graphs.values():
        for weight in graph.weights:
            files.setdefault(weight.file, {})[weight.name] = weight

    numbers, writer, places = RandomNumbers(), BundleWriter(folder), {}
    for file, weights in files.items():
        own, size = layout(weights.values())
        _write(folder / file, weights, own, size, numbers, distinct)
        places[file] = own if distinct else {name: own[_first(name, weights)] for name in weights}
        writer.files[file] = FileEntry(size, "0" * 64)
    for file, graph in graphs.items():
        where = {weight.name: places[weight.file][weight.name] for weight in graph.weights}
        writer.add(file, graph.model(where).SerializeToString())
    writer.add(TOKENIZER, (TINY / "tokenizer.json").read_bytes())
    template = json.loads((TINY / "chat_template.json").read_text())
    for file, value in (
        (CHAT_TEMPLATE, template),
        (CONFIG, config),
        (PREPROCESSOR_FILE, PREPROCESSOR_CONFIG),
        (GENERATION_CONFIG, generation),
    ):
        writer.add_json(file, value)
    writer.finish(folder.name, precision, geometry, __version__)
    return Bundle.open(folder)


def published_bundle(size: str, precision: str, work: Path, distinct: bool) -> Bundle:
    """The bundle of a published size with random weights, made once; `distinct`: no two layers are equal."""
    folder = work / f"{size}-{precision}{'-distinct' if distinct else ''}"
    if not (folder / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_random_bundle(folder, published_config(size), precision, distinct)
    return Bundle.open(folder)


def _first(name: str, weights: dict[str, Weight]) -> str:
    """The same weight's name in layer 0 or, where that has another form (4 bit, 8 bit), in the last one."""
    zeroth = LAYER.sub(r"\1.0.", name)
    if _codes(zeroth, weights) == _codes(name, weights):
        return zeroth
    last = max(int(layer[2]) for layer in map(LAYER.match, weights) if layer)
    return LAYER.sub(rf"\g<1>.{last}.", name)


def _codes(name: str, weights: dict[str, Weight]) -> int:
    """The element type of a matrix, from its own name or that of its scale or zero point."""
    return weights[name.removesuffix(SCALE).removesuffix(ZERO_POINT)].element_type


def _write(
    file: Path, weights: dict[str, Weight], places: Places, size: int, numbers: RandomNumbers, distinct: bool
) -> None:
    with open(file, "wb") as stream:
        for name, weight in weights.items():
            if distinct or _first(name, weights) == name:
                stream.seek(places[name][0])
                for block in numbers.blocks(weight, _codes(name, weights)):
                    stream.write(block)
        stream.truncate(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(PUBLISHED), required=True)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="decoder layers (default: all)")
    parser.add_argument("--distinct", action="store_true", help="no two layers are equal")
    options = parser.parse_args()
    config = published_config(options.size, options.layers)
    bundle = write_random_bundle(options.output, config, options.precision, options.distinct)
    print(f"{options.output}: {sum(entry.size for entry in bundle.files.values()) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
