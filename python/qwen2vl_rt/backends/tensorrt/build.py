"""From a bundle to its engines: lower, parse, patch, build, describe; what was built before is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from qwen2vl_rt.backends.device.memory import shares_memory
from qwen2vl_rt.backends.tensorrt import ATTENTION_FORMS, GRAPHS
from qwen2vl_rt.backends.tensorrt.build_memory import require_memory, stored_bytes
from qwen2vl_rt.backends.tensorrt.builder import build_engine
from qwen2vl_rt.backends.tensorrt.description import EngineDescription
from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.backends.tensorrt.engines import FOLDER, EngineFile, engine_file, engine_key
from qwen2vl_rt.backends.tensorrt.files import partial_path
from qwen2vl_rt.backends.tensorrt.network import Network
from qwen2vl_rt.backends.tensorrt.profiles import SHORTEST, Profile, decoder_profiles, vision_profiles
from qwen2vl_rt.backends.tensorrt.target import BFLOAT16_SINCE, FLOAT32_SINCE, FP8_SINCE, INT4_SINCE, Target
from qwen2vl_rt.backends.tensorrt.timing import timing_file
from qwen2vl_rt.bundle import PREFILL_GRAPH, Bundle
from qwen2vl_rt.errors import BackendError, InputError
from qwen2vl_rt.geometry import Geometry
from qwen2vl_rt.graph_format import cache_tensors
from qwen2vl_rt.lowering.tensorrt import Form, lower_decoder, lower_vision
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import drop_cache, load_graph


@dataclass(frozen=True)
class Built:
    """One engine of a bundle."""

    graph: str
    """One of GRAPHS."""
    file: EngineFile
    description: EngineDescription
    reused: bool
    """It was there already."""


def build_engines(
    bundle: Bundle,
    edition: Edition,
    target: Target,
    limits: SessionLimits,
    *,
    attention: str | None = None,
    number_format: str | None = None,
    fp8: bool = False,
    output: Path | None = None,
    on_engine: Callable[[Built], None] | None = None,
) -> list[Built]:
    """Build every graph of a bundle for one target.

    Args:
        bundle: the model.
        edition: the TensorRT that builds.
        target: the GPUs to build for.
        limits: cache length, rows, chunk and picture size that the engines allow.
        attention: of the decoder, see `Form`; `choose_attention` if None.
        number_format: arithmetic around the matrices; `choose_format` if None.
        fp8: linear layers of an unquantized bundle as products of 8-bit floating-point numbers.
        output: folder of the engines; `engines` in the bundle if None.
        on_engine: told of each engine when it is there.

    Raises:
        InputError: a cache that is too short for an engine.
        BackendError: a form that the target or the edition does not have, or a graph that TensorRT refuses.
        MemoryLimitError: the machine's memory is too small to build a graph.
    """
    check_length(limits)
    check_fp8(bundle, target, fp8)
    form = Form(
        choose_format(bundle, target, number_format),
        choose_attention(edition, attention),
        fp8,
        split_codes=target.has(INT4_SINCE),
    )
    check_float32(edition, target, form)
    folder = output or bundle.path / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"Cannot write engines to {folder}: {error.strerror}; name another --output."
        ) from error
    built = []
    for graph in GRAPHS:
        if f"{graph}.onnx" in bundle.files:
            built.append(_build_graph(bundle, graph, edition, target, limits, form, folder))
            if on_engine:
                on_engine(built[-1])
    return built


def choose_format(bundle: Bundle, target: Target, wanted: str | None = None) -> str:
    """The arithmetic of an engine: a bf16 or fp16 bundle's own, bfloat16 for others (float16 before SM 8.0).

    An fp32 bundle is narrowed, too: GPUs have their fast products, and TensorRT its attention, in 16 bits.

    Raises:
        BackendError: the bundle or the target does not have `wanted`, or the target not the bundle's.
    """
    precision, has_bfloat16 = bundle.precision, target.has(BFLOAT16_SINCE)
    if precision.startswith("int4") and not target.has(INT4_SINCE):
        raise BackendError(
            f"{target.name} has no int4 products in TensorRT: export with --precision int8 or fp16."
        )
    if precision in ("bf16", "fp16"):
        if wanted not in (None, precision):
            raise BackendError(
                f"A {precision} bundle does not compute in {wanted}: export with --precision {wanted}."
            )
        chosen = precision
    else:
        chosen = wanted or ("bf16" if has_bfloat16 else "fp16")
    if chosen == "bf16" and not has_bfloat16:
        instead = "export with --precision" if precision == "bf16" else "choose --arithmetic"
        raise BackendError(f"{target.name} has no bfloat16: {instead} fp16.")
    return chosen


def check_length(limits: SessionLimits) -> None:
    """Refuse a cache that is shorter than the tokens which every profile takes.

    Raises:
        InputError: `max_length` is below that.
    """
    if limits.max_length < SHORTEST:
        raise InputError(
            f"max_length is {limits.max_length}: give {SHORTEST} or more positions to a TensorRT engine."
        )


def check_float32(edition: Edition, target: Target, form: Form) -> None:
    """Refuse float32 arithmetic where TensorRT for RTX has no kernels for it.

    Raises:
        BackendError: the edition has none for the target's products or for this form's attention; the
            message says what to choose instead.
    """
    if form.number_format != "fp32" or edition.attends_in_float32:
        return
    if not target.has(FLOAT32_SINCE):
        raise BackendError(f"{edition} has no float32 products for {target.name}: choose --arithmetic fp16.")
    if form.attention != "primitives":
        raise BackendError(
            f"{edition} has no float32 attention: choose --arithmetic bf16 or --attention primitives."
        )


def check_fp8(bundle: Bundle, target: Target, fp8: bool) -> None:
    """Refuse fp8 for a quantized bundle, and for targets that do not multiply it (portable is one).

    Raises:
        BackendError: the bundle's matrices are integers already, or the target has no fp8 products.
    """
    if not fp8:
        return
    if bundle.precision.startswith("int"):
        raise BackendError(
            f"An {bundle.precision} bundle is quantized already: fp8 is made of bf16, fp16 or fp32."
        )
    if not target.has(FP8_SINCE):
        raise BackendError(
            f"{target.name} has no fp8 products: name a GPU from SM 8.9 on, such as --gpu sm89."
        )


def choose_attention(edition: Edition, wanted: str | None = None) -> str:
    """The form of the decoder's attention: "mask", or "primitives" where the edition knows no newer
    operators. "lengths" is taken on request: a decode step needs several times the memory in it
    (docs/tensorrt.md).

    Raises:
        BackendError: the edition cannot take `wanted`.
    """
    if edition.has_cache_operators:
        possible = [form for form in ATTENTION_FORMS if form != "lengths" or edition.aligns_attention]
    else:
        possible = ["primitives"]
    if wanted is not None and wanted not in possible:
        raise BackendError(f"{edition} cannot take attention {wanted!r}: choose {' or '.join(possible)}.")
    return wanted or possible[0]


def _build_graph(
    bundle: Bundle,
    graph: str,
    edition: Edition,
    target: Target,
    limits: SessionLimits,
    form: Form,
    folder: Path,
) -> Built:
    if graph == "vision" and form.attention == "lengths":
        form = replace(form, attention="mask")  # it has neither: one engine serves both
    model, weights = load_graph(bundle, f"{graph}.onnx")
    apart = PREFILL_GRAPH in bundle.files
    profiles = lower_graph(graph, model, weights, bundle.geometry, limits, form, prompts_apart=apart)
    key = engine_key(bundle, graph, model, edition, target, form, profiles)
    file = engine_file(folder, graph, key)
    if file.exists:
        with suppress(BackendError):  # damaged, or described by another version of this package: built again
            return Built(graph, file, file.describe(), reused=True)

    require_memory(graph, stored_bytes(model, weights))
    network = Network(edition, model, weights)
    if not weights and shares_memory():  # TensorRT has copies; CUDA would count the page cache as taken
        for name in key.sources:
            drop_cache(bundle.file(name))
    if form.attention == "lengths":
        network.align_attention()
    partial = partial_path(file.path)
    try:
        figures = build_engine(network, target, profiles, graph, partial, timing_file(folder, edition))
        inputs, outputs = network.tensors()
        description = EngineDescription(
            graph=graph,
            bundle=bundle.name,
            precision=bundle.precision,
            key=key,
            inputs=inputs,
            outputs=outputs,
            shared=_shared(bundle.geometry.decoder.layers, {tensor.name for tensor in outputs}),
            figures=figures,
        )
        file.write(partial, description)
    except OSError as error:
        raise BackendError(f"Cannot write {file.path}: {error.strerror}; name another --output.") from error
    finally:
        partial.unlink(missing_ok=True)
    return Built(graph, file, description, reused=False)


def lower_graph(
    graph: str,
    model: ModelProto,
    weights: dict,
    geometry: Geometry,
    limits: SessionLimits,
    form: Form,
    *,
    prompts_apart: bool = False,
) -> list[Profile]:
    """Lower a graph in place; the profiles that it is built for.

    `prompts_apart`: the decoder's graph takes answers only, prompts have one of their own.
    """
    if graph == "vision":
        lower_vision(model, weights, geometry, form)
        return vision_profiles(geometry.vision, limits)
    lower_decoder(model, weights, geometry, form, limits.max_length)
    if not prompts_apart:
        names = ("prefill", "decode")
    else:
        names = ("prefill",) if graph == "prefill" else ("decode",)
    return decoder_profiles(geometry.decoder, limits, names)


def _shared(layers: int, outputs: set[str]) -> dict[str, str]:
    """Outputs that must be bound to the memory of an input: the cache, written in place."""
    return {names.present: names.past for names in cache_tensors(layers) if names.present in outputs}
