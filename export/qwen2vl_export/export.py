"""The whole export: a checkpoint folder in, a bundle out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx

from qwen2vl_export.bundle_writer import BundleWriter, check_target, writing
from qwen2vl_export.checkpoint import Checkpoint, read_json
from qwen2vl_export.decoder import decoder_graph, embedding_weights, prefill_graph
from qwen2vl_export.errors import ExportError
from qwen2vl_export.graph import Graph, Weight
from qwen2vl_export.precisions import FORMS
from qwen2vl_export.quantize.calibrated import CalibratedSource
from qwen2vl_export.quantize.forms import is_kept
from qwen2vl_export.quantize.nearest import NearestSource
from qwen2vl_export.sources import CheckpointSource, Source
from qwen2vl_export.vision import vision_graph
from qwen2vl_export.weights import layout, write_weights
from qwen2vl_rt import __version__
from qwen2vl_rt.bundle import (
    CHAT_TEMPLATE,
    CONFIG,
    DECODER_GRAPH,
    EMBEDDING,
    GENERATION_CONFIG,
    PRECISIONS,
    PREFILL_GRAPH,
    PREPROCESSOR_CONFIG,
    TOKENIZER,
    VISION_GRAPH,
    Bundle,
)
from qwen2vl_rt.errors import BundleError, CheckpointError
from qwen2vl_rt.generation_config import generation_defaults
from qwen2vl_rt.processing.chat_template import find_template
from qwen2vl_rt.processing.pixels import PixelSettings, find_config
from qwen2vl_rt.processing.tokenizer import Tokenizer

_SMALL_FILES_BYTES = 64 * 2**20  # graphs, tokenizer and settings, generously


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    precision: str = "fp32",
    *,
    calibration: str | Path | None = None,
    name: str | None = None,
    force: bool = False,
    on_total: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Bundle:
    """Export the checkpoint folder into the bundle `output` and return the opened bundle.

    `calibration` is a folder of conversations and pictures (`quantize.calibration.SHIPPED` is the package's
    own) on which a quantized precision chooses its codes and scales; None rounds to nearest. `name` is the
    model's name in the manifest (the folder's by default). `force` replaces an existing bundle. `on_total` is
    told once how many bytes of weights will be written, `progress` the bytes since its last call. Raises
    CheckpointError for what is wrong with the checkpoint and ExportError for what is wrong with the output;
    in both cases no bundle appears.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    target = Path(output).absolute()
    check_target(target, force)
    source = Checkpoint.open(checkpoint)
    geometry = source.geometry

    graphs = {
        VISION_GRAPH: vision_graph(geometry.vision, geometry.decoder.hidden_size, precision),
        DECODER_GRAPH: decoder_graph(geometry.decoder, precision, _four_bits(source)),
    }
    if (prefill := prefill_graph(geometry.decoder, precision)) is not None:
        graphs[PREFILL_GRAPH] = prefill
    files = _by_file(embedding_weights(geometry.decoder, precision), graphs.values())
    source.check([weight for weights in files.values() for weight in weights])
    settings = _settings(source)
    calibrated = None if calibration is None else Path(calibration)
    numbers = _numbers(source, precision, graphs.values(), files[EMBEDDING][0], calibrated)

    total = sum(layout(weights)[1] for weights in files.values())
    if on_total:
        on_total(total)

    with writing(target, force, total + _SMALL_FILES_BYTES) as writer:
        for file, weights in files.items():
            writer.files[file] = write_weights(
                writer.folder / file, weights, numbers, progress or (lambda count: None)
            )
        for file, graph in graphs.items():
            _write_graph(writer, file, graph, files)
        for file, data in settings.items():
            if isinstance(data, bytes):
                writer.add(file, data)
            else:
                writer.add_json(file, data)
        writer.finish(name or source.path.resolve().name, precision, geometry, __version__)
    return Bundle.open(target)  # absolute: `output` may be the working folder, which is gone then


def _by_file(embedding: list[Weight], graphs: Iterable[Graph]) -> dict[str, list[Weight]]:
    """Return the weights by the file that holds them, in the order of writing.

    What several graphs share is declared by each and stored once: a tied table, and the lm_head of both
    decoders.
    """
    files: dict[str, dict[str, Weight]] = {EMBEDDING: {weight.name: weight for weight in embedding}}
    for graph in graphs:
        for weight in graph.weights:
            files.setdefault(weight.file, {})[weight.name] = weight
    return {file: list(weights.values()) for file, weights in files.items()}


def _four_bits(checkpoint: Checkpoint) -> set[str]:
    """Return the weights that an int4 bundle takes from the checkpoint code for code."""
    return {source for source, layer in checkpoint.packed.items() if is_kept(layer)}


def _numbers(
    checkpoint: Checkpoint, precision: str, graphs: Iterable[Graph], table: Weight, calibration: Path | None
) -> Source:
    """Return what gives the weights' values in this precision."""
    if FORMS[precision].table == "float":
        return CheckpointSource(checkpoint)
    if calibration is None:
        return NearestSource(checkpoint)
    return CalibratedSource(checkpoint, graphs, table, calibration)


def _write_graph(writer: BundleWriter, file: str, graph: Graph, files: dict[str, list[Weight]]) -> None:
    """Write a graph and have ONNX check it, shapes included, beside its weights."""
    layouts = {name: layout(files[name])[0] for name in {weight.file for weight in graph.weights}}
    places = {weight.name: layouts[weight.file][weight.name] for weight in graph.weights}
    writer.add(file, graph.model(places).SerializeToString())
    onnx.checker.check_model(str(writer.folder / file), full_check=True)


def _settings(checkpoint: Checkpoint) -> dict[str, object]:
    """Read the small files that go along: {name in the bundle: bytes, or a JSON value to write}.

    What no session would open is refused here, before gigabytes are written.
    """
    folder, geometry = checkpoint.path, checkpoint.geometry
    files: dict[str, object] = {}
    for name in (CONFIG, TOKENIZER):
        read_json(folder / name)  # refuses a missing or damaged one
        files[name] = (folder / name).read_bytes()
    generation = folder / GENERATION_CONFIG
    files[GENERATION_CONFIG] = generation.read_bytes() if generation.exists() else {}
    try:
        if generation.exists():
            generation_defaults(generation)
        Tokenizer(folder / TOKENIZER).token_bytes(geometry.decoder.vocab_size)
        file, pixels = find_config(folder)
        if problem := PixelSettings.from_folder(folder).problem(geometry.vision):
            raise BundleError(f"{file} {problem}")
        template = find_template(folder)
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    files[PREPROCESSOR_CONFIG] = file.read_bytes() if file.name == PREPROCESSOR_CONFIG else pixels
    if template is not None:
        files[CHAT_TEMPLATE] = {"chat_template": template}
    return files
