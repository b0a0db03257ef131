"""Engines are really built here, for GPUs that are not in this machine. Running one needs the GPU."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bench.shaped_graphs import shaped
from bench.tiny import TINY
from qwen2vl_export.decoder import decoder_graph
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.vision import vision_graph
from qwen2vl_rt.backends.tensorrt import build as build_module
from qwen2vl_rt.backends.tensorrt import build_memory, builder
from qwen2vl_rt.backends.tensorrt import network as network_module
from qwen2vl_rt.backends.tensorrt.build import build_engines, lower_graph
from qwen2vl_rt.backends.tensorrt.build_memory import MARGIN, SMALLEST_WORKSPACE, limit_workspace
from qwen2vl_rt.backends.tensorrt.builder import build_engine
from qwen2vl_rt.backends.tensorrt.description import DESCRIPTION_VERSION, Figures
from qwen2vl_rt.backends.tensorrt.edition import find_edition
from qwen2vl_rt.backends.tensorrt.network import Network, parse_from_files
from qwen2vl_rt.backends.tensorrt.target import choose_target
from qwen2vl_rt.backends.tensorrt.timing import keep_timings, use_timings
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.cli import main
from qwen2vl_rt.errors import BackendError, InputError, MemoryLimitError
from qwen2vl_rt.geometry import DecoderGeometry, Geometry, SpecialIds, VisionGeometry
from qwen2vl_rt.lowering.tensorrt import Form, lower_decoder, lower_vision
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.weights import drop_cache, load_graph

trt = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX is not installed (no wheel for this system)"
)

LIMITS = SessionLimits(max_length=512, max_batch=2, max_pixels=448 * 448, prefill_chunk=64)
TARGETS = {
    "sm75": "fp16",
    "sm80": "bf16",
    "sm86": "bf16",
    "sm89": "bf16",
    "sm120": "bf16",
    "portable": "bf16",
}

# Two layers as wide as the 2B model's, with a small vocabulary, and two blocks of the published tower.
DECODER_2B = DecoderGeometry(1536, 2, 12, 2, 128, 8960, 1024, 1e6, (16, 24, 24), 1e-6, tied_embedding=False)
VISION = VisionGeometry(2, 1280, 16, 5120, 14, 2, 2, 3)
SHAPES_2B = Geometry(DECODER_2B, VISION, SpecialIds(0, 1, 2, 3, (4,), 5))
LIMITS_2B = SessionLimits(max_length=4096, max_batch=4, max_pixels=16384 * 14 * 14, prefill_chunk=512)
KERNELS = 12 << 20  # bytes of an engine that are not weights, however large the model


@pytest.fixture(scope="module")
def edition():
    return find_edition("tensorrt_rtx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("tiny")
    return {
        precision: export_checkpoint(TINY, folder / precision, precision)
        for precision in ("fp32", "bf16", "fp16", "int8", "int4-int8")
    }


def build(bundle: Bundle, target: str, output: Path, edition, **options):
    return build_engines(bundle, edition, choose_target(target, edition), LIMITS, output=output, **options)


def weight_bytes(bundle: Bundle, graph: str) -> int:
    return sum(array.nbytes for array in load_graph(bundle, f"{graph}.onnx")[1].values())


@pytest.mark.parametrize("target", TARGETS)
def test_tiny_bundle_for_every_target(tiny, edition, tmp_path, target):
    bundle = tiny[TARGETS[target]]
    built = build(bundle, target, tmp_path, edition)
    assert [engine.graph for engine in built] == ["vision", "decoder"]
    for engine in built:
        description = engine.file.describe()
        assert engine.file.path.stat().st_size == description.figures.engine_bytes
        assert description.key.target == target
        # Every profile uses the same weights.
        assert description.figures.weights_bytes < 1.03 * weight_bytes(bundle, engine.graph)
    types = {tensor.name: tensor.type for tensor in description.tensors()}
    own = {"bf16": "bf16", "fp16": "half"}[bundle.precision]
    assert (types["inputs_embeds"], types["past_k.0"], types["logits"]) == (own, own, "float")
    layers = bundle.geometry.decoder.layers
    assert description.shared == {
        f"present_{part}.{layer}": f"past_{part}.{layer}" for layer in range(layers) for part in "kv"
    }
    assert [profile.name for profile in description.key.profiles] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("target", "options", "computes"),
    [
        ("portable", {}, "bf16"),
        ("sm89", {"attention": "lengths"}, "bf16"),
        ("sm120", {"fp8": True}, "bf16"),
        ("sm75", {}, "fp16"),
        ("sm89", {"number_format": "fp32", "attention": "primitives"}, "fp32"),
    ],
    ids=["portable", "lengths", "fp8", "sm75", "float32"],
)
def test_a_float32_bundle(tiny, edition, tmp_path, target, options, computes):
    """Narrowed, unless it is asked for and has no attention operator: that has no float32 kernels."""
    built = build(tiny["fp32"], target, tmp_path, edition, **options)
    assert {engine.description.key.form.number_format for engine in built} == {computes}
    decoder = built[1].description
    own = format_named(computes)
    assert {decoder.number_format(name) for name in ("inputs_embeds", "past_k.0")} == {own}
    widened = 1.03 * own.item_bytes / 4
    for engine in built:
        figures = engine.description.figures
        assert figures.weights_bytes < widened * weight_bytes(tiny["fp32"], engine.graph)


def test_float32_that_the_edition_lacks(tiny, edition, tmp_path):
    """Refused before anything is built."""
    for target, attention in (("sm89", "mask"), ("portable", "lengths"), ("sm75", "primitives")):
        with pytest.raises(BackendError, match=r"for RTX [\d.]+ has no float32 \w+.*: choose --arith"):
            build(tiny["fp32"], target, tmp_path, edition, number_format="fp32", attention=attention)
    assert not list(tmp_path.iterdir())


def test_the_shortest_cache(tiny, edition, tmp_path):
    bundle, target = tiny["bf16"], choose_target("sm89", edition)
    shortest = replace(LIMITS, max_length=2)
    assert build_engines(bundle, edition, target, shortest, output=tmp_path)
    with pytest.raises(InputError, match="max_length is 1: give 2 or more"):
        build_engines(bundle, edition, target, replace(LIMITS, max_length=1), output=tmp_path)


def test_an_engine_is_built_once(tiny, edition, tmp_path):
    first = build(tiny["bf16"], "sm86", tmp_path, edition, attention="mask")
    written = [engine.file.path.stat().st_mtime_ns for engine in first]
    again = build(tiny["bf16"], "sm86", tmp_path, edition, attention="mask")
    assert [engine.reused for engine in first + again] == [False, False, True, True]
    assert [engine.file.path.stat().st_mtime_ns for engine in again] == written
    other = build(tiny["bf16"], "sm86", tmp_path, edition, attention="primitives")
    assert not any(engine.reused for engine in other)
    outputs = {tensor.name for tensor in other[1].description.outputs}
    assert "new_k.0" in outputs and "present_k.0" not in outputs and not other[1].description.shared

    first[0].file.path.write_bytes(b"cut off")
    described = first[1].file.description_path
    described.write_text(
        described.read_text().replace(
            f'"description_version": {DESCRIPTION_VERSION}', '"description_version": 0'
        )
    )
    repaired = build(tiny["bf16"], "sm86", tmp_path, edition, attention="mask")
    assert not any(engine.reused for engine in repaired)
    assert [engine.file for engine in repaired] == [engine.file for engine in first]
    assert all(engine.file.describe() for engine in repaired)


def test_quantized_bundles(tiny, edition, tmp_path):
    built = build(tiny["int4-int8"], "sm89", tmp_path, edition)
    assert [engine.graph for engine in built] == ["vision", "prefill", "decoder"]
    assert [[profile.name for profile in engine.description.key.profiles] for engine in built] == [
        ["picture", "frames"],
        ["prefill"],
        ["decode"],
    ]
    assert built[2].description.key.form.number_format == "bf16"
    for engine in built:  # at 4 and 8 bits: the floating-point part is narrowed, nothing is widened
        stored = weight_bytes(tiny["int4-int8"], engine.graph)
        assert engine.description.figures.weights_bytes < 1.03 * stored
    older = build(tiny["int8"], "sm75", tmp_path, edition)
    assert {engine.description.key.form.number_format for engine in older} == {"fp16"}


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_fp8(tiny, edition, tmp_path, target):
    vision, decoder = build(tiny["bf16"], target, tmp_path, edition, fp8=True)
    for engine in (vision, decoder):  # matrices take half of what they do in the bundle
        figures = engine.description.figures
        assert figures.weights_bytes < 0.62 * weight_bytes(tiny["bf16"], engine.graph)


def build_shape(
    graph: str, precision: str, target: str, edition, folder: Path, attention: str = "mask"
) -> tuple[Figures, int]:
    """Build 2B-shaped layers; the figures, and the bytes of the bundle's weights."""
    if graph == "decoder":
        portable = decoder_graph(DECODER_2B, precision)
    else:
        portable = vision_graph(VISION, DECODER_2B.hidden_size, precision)
    model, weights = shaped(portable)
    profiles = lower_graph(graph, model, weights, SHAPES_2B, LIMITS_2B, Form("bf16", attention))
    network = Network(edition, model, weights)
    if attention == "lengths":
        network.align_attention()
    stored = sum(weight.nbytes for weight in portable.weights)
    return build_engine(network, choose_target(target, edition), profiles, graph, folder / "engine"), stored


@pytest.mark.parametrize("target", ["sm86", "sm89"])
@pytest.mark.parametrize(
    ("precision", "attention", "scratch"),
    [("bf16", "mask", (64, 20)), ("int4", "mask", (80, 20)), ("bf16", "lengths", (64, 100))],
)
def test_layers_of_the_2b_model(edition, tmp_path, precision, attention, scratch, target):
    """Profiles of one row and of four share the weights. In int4 one of the two layers has 8-bit blocks, and
    so has lm_head: nothing is widened, and no matrix written out.
    """
    figures, stored = build_shape("decoder", precision, target, edition, tmp_path, attention)
    assert figures.weights_bytes < 1.03 * stored
    assert figures.engine_bytes < 1.03 * stored + KERNELS
    prefill, decode = figures.activation_bytes
    assert prefill < scratch[0] << 20
    # With lengths 24 MB a row: TensorRT writes a layer's keys and values out for every head of the queries.
    assert decode < scratch[1] << 20


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_largest_picture_needs_no_scores(edition, tmp_path, precision):
    """16,384 patches: all scores of one block would be 8.6 GB, of one head 0.5 GB."""
    figures, stored = build_shape("vision", precision, "sm89", edition, tmp_path)
    assert figures.weights_bytes < 1.03 * stored
    assert max(figures.activation_bytes) < 450 << 20


def test_attention_is_aligned_on_every_layer(edition):
    model, weights = shaped(decoder_graph(DECODER_2B, "bf16"))
    lower_decoder(model, weights, SHAPES_2B, Form("bf16", "lengths"), 64)
    network = Network(edition, model, weights)

    def kinds():
        found = []
        for index in range(network.network.num_layers):
            layer = network.network.get_layer(index)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer
                lengths = layer.attention.key_value_lengths
                found.append((layer.attention.causal_kind, None if lengths is None else tuple(lengths.shape)))
        return found

    assert kinds() == [(trt.CausalMaskKind.UPPER_LEFT, None)] * 2, "the parser sets these now: look again"
    network.align_attention()
    assert kinds() == [(trt.CausalMaskKind.LOWER_RIGHT, (-1,))] * 2


@pytest.mark.parametrize(
    ("precision", "graph", "form"),
    [
        ("bf16", "decoder", Form("bf16", "primitives")),
        ("int8", "vision", Form("fp16", "primitives")),
        ("int4-int8", "decoder", Form("bf16", "primitives")),
        ("bf16", "vision", Form("bf16", "primitives", fp8=True)),
    ],
    ids=["bf16", "int8", "int4", "fp8"],
)
def test_weights_by_way_of_files(tiny, edition, precision, graph, form):
    """Older parsers take no weights from memory."""
    bundle = tiny[precision]
    model, weights = load_graph(bundle, f"{graph}.onnx")
    if graph == "vision":
        lower_vision(model, weights, bundle.geometry, form)
    else:
        lower_decoder(model, weights, bundle.geometry, form, LIMITS.max_length)
    made = trt.Builder(edition.logger)
    network = made.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert parse_from_files(trt.OnnxParser(network, edition.logger), model, weights)
    assert not weights  # let go
    assert network.num_outputs == len(model.graph.output) and network.num_layers > 100


@pytest.fixture
def shared_memory(monkeypatch):
    """A GPU that shares the system's memory, of which so many bytes are available."""

    def pretend(available: int) -> None:
        for module in (build_memory, build_module):
            monkeypatch.setattr(module, "shares_memory", lambda: True)
        monkeypatch.setattr(build_memory, "available_memory", lambda: available)

    return pretend


def test_a_build_by_way_of_files_gives_back_the_page_cache(
    tiny, edition, tmp_path, monkeypatch, shared_memory
):
    """CUDA would count it as taken. The engine is the same without the weights that were written."""
    shared_memory(8 << 30)
    dropped = []
    monkeypatch.setattr(build_module, "drop_cache", lambda file: dropped.append(file.name))
    build(tiny["bf16"], "sm86", tmp_path / "memory", edition)
    assert not dropped  # TensorRT reads the mapped files still
    monkeypatch.setattr(network_module, "parse_from_memory", parse_from_files)
    built = build(tiny["bf16"], "sm86", tmp_path / "files", edition)
    assert {"vision.weights", "decoder.weights"} <= set(dropped)
    for engine in built:
        other = tmp_path / "memory" / engine.file.path.name
        assert abs(engine.file.path.stat().st_size - other.stat().st_size) < 4096


def test_cache_of_a_file(tmp_path, monkeypatch):
    """All of it is named; what the kernel does then is its own affair."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(4096))
    advice = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _file, *given: advice.append(given))
    drop_cache(file)
    assert advice == [(0, 0, os.POSIX_FADV_DONTNEED)]


def test_kernels_are_tried_within_what_is_left(edition, shared_memory):
    """Where the GPU shares the system's memory; elsewhere TensorRT's own limit stays."""
    kind = trt.MemoryPoolType.WORKSPACE
    made = trt.Builder(edition.logger)
    config = made.create_builder_config()
    before = config.get_memory_pool_limit(kind)
    limit_workspace(config, edition, 1 << 30)
    assert config.get_memory_pool_limit(kind) == before
    shared_memory(4 << 30)
    limit_workspace(config, edition, 1 << 30)
    assert config.get_memory_pool_limit(kind) == (3 << 30) - MARGIN
    limit_workspace(config, edition, 4 << 30)
    assert config.get_memory_pool_limit(kind) == SMALLEST_WORKSPACE


def test_a_build_that_does_not_fit(tiny, edition, tmp_path, monkeypatch):
    """Refused before TensorRT takes anything; what is there already is used all the same."""
    vision, _ = build(tiny["bf16"], "sm86", tmp_path, edition)
    monkeypatch.setattr(build_memory, "available_memory", lambda: MARGIN)
    assert all(engine.reused for engine in build(tiny["bf16"], "sm86", tmp_path, edition))
    vision.file.description_path.unlink()
    with pytest.raises(MemoryLimitError, match=r"the vision engine takes 1\.0\d GiB.*too little: close"):
        build(tiny["bf16"], "sm86", tmp_path, edition)


def test_what_the_parser_refuses(tiny, edition):
    """A graph that has not been lowered."""
    with pytest.raises(
        BackendError, match=r"TensorRT for RTX [\d.]+ cannot take decoder: TensorScatter 'present_k.0'"
    ):
        Network(edition, *load_graph(tiny["bf16"], "decoder.onnx"))


def test_what_the_builder_refuses(edition, tmp_path):
    """int4 before SM 8.0, past the check that a user meets first."""
    with pytest.raises(BackendError, match=r"cannot build decoder for sm75: .*int4"):
        build_shape("decoder", "int4", "sm75", edition, tmp_path)


def test_an_interrupted_build_leaves_nothing(tiny, edition, tmp_path, monkeypatch):
    class Interrupted:
        total = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def set_postfix_str(self, text, refresh):
            pass

        def update(self):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(builder, "progress_bar", lambda *arguments: Interrupted())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(tiny["bf16"], "sm86", tmp_path, edition)
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # this edition has the calls, and times nothing
def test_timing_cache(edition, tmp_path):
    made = trt.Builder(edition.logger)
    file = tmp_path / "timing.cache"
    first = made.create_builder_config()
    use_timings(first, file)
    keep_timings(first, file)
    second = made.create_builder_config()
    use_timings(second, file)
    assert second.get_timing_cache() is not None and file.read_bytes()
    file.write_bytes(b"damaged")
    third = made.create_builder_config()
    use_timings(third, file)
    assert third.get_timing_cache() is not None


def test_command(tiny, tmp_path, capsys):
    arguments = ["build", str(tiny["bf16"].path), "--edition", "tensorrt_rtx"]
    build_here = [*arguments, "--gpu", "8.9", "--output", str(tmp_path), "--max-length", "64"]
    assert main([*build_here, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["edition"].startswith("TensorRT for RTX") and report["target"] == "sm89"
    assert report["arithmetic"] == "bf16"
    assert Path(report["engines"]["decoder"]).is_file()
    assert main(build_here) == 0
    assert capsys.readouterr().out.count("was there already") == 2
    assert main([*arguments, "--gpu", "sm90"]) == 1
    assert "does not build for sm90, only for sm75, sm80" in capsys.readouterr().err


def test_command_says_what_a_float32_bundle_computes_in(tiny, tmp_path, capsys):
    arguments = ["build", str(tiny["fp32"].path), "--edition", "tensorrt_rtx", "--output", str(tmp_path)]
    arguments += ["--max-length", "64", "--portable"]
    assert main(arguments) == 0
    assert "\ncomputes in bf16: --arithmetic names another format\n" in capsys.readouterr().out
    assert main([*arguments, "--arithmetic", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("was there already") == 2 and "names another" not in printed
    assert main([*arguments, "--arithmetic", "fp32"]) == 1
    assert "has no float32 attention: choose --arithmetic bf16" in capsys.readouterr().err
