"""The graphs as ONNX files: standard operators only, checked shapes, free sizes, the names others rely on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from qwen2vl_export.decoder import decoder_graph
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.vision import vision_graph
from qwen2vl_rt.bundle import DECODER_GRAPH, EMBEDDING, VISION_GRAPH, Bundle
from tests.support.portable_graphs import PortableDecoder, PortableVision, rope_tables, vision_rope_tables

TYPES = {"fp32": TensorProto.FLOAT, "bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}


@pytest.fixture(scope="module", params=TYPES)
def bundle(request, pristine_checkpoint, tmp_path_factory) -> Bundle:
    return export_checkpoint(pristine_checkpoint, tmp_path_factory.mktemp("graphs") / "bundle", request.param)


def shapes(values) -> dict[str, tuple[int, list]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("name", [DECODER_GRAPH, VISION_GRAPH])
def test_checker_and_standard_operators(bundle, name):
    onnx.checker.check_model(str(bundle.file(name)), full_check=True)
    model = onnx.load(bundle.file(name), load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


@pytest.mark.parametrize("name", [DECODER_GRAPH, VISION_GRAPH])
def test_every_tensor_gets_a_type_and_a_rank(bundle, name):
    model = onnx.load(bundle.file(name), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    known = shapes([*inferred.graph.value_info, *inferred.graph.output])
    for node in inferred.graph.node:
        for output in node.output:
            assert known[output][1], f"{output} has no shape"


@pytest.mark.parametrize("name", [DECODER_GRAPH, VISION_GRAPH])
def test_names_are_unique_and_readable(bundle, name):
    graph = onnx.load(bundle.file(name), load_external_data=False).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    for node in graph.node:
        assert node.op_type == "Split" or list(node.output) == [node.name]
    tensors = {output for node in graph.node for output in node.output}
    assert not tensors & {tensor.name for tensor in graph.initializer}


def test_decoder_contract(bundle):
    t, i64 = TYPES[bundle.precision], TensorProto.INT64
    graph = onnx.load(bundle.file(DECODER_GRAPH), load_external_data=False).graph
    g = bundle.geometry.decoder
    cache = (t, ["B", g.kv_heads, "S", g.head_dim])
    assert shapes(graph.input) == {
        "inputs_embeds": (t, ["B", "T", g.hidden_size]),
        "cos": (t, ["B", "T", g.head_dim // 2]),
        "sin": (t, ["B", "T", g.head_dim // 2]),
        "past_length": (i64, ["B"]),
        "logit_rows": (i64, ["B", "K"]),
        "past_k.0": cache,
        "past_v.0": cache,
    }
    assert shapes(graph.output) == {
        "logits": (TensorProto.FLOAT, ["B", "K", g.vocab_size]),
        "present_k.0": cache,
        "present_v.0": cache,
    }


def test_norms_use_the_models_epsilon(bundle):
    """Too small to show in the results of a random model, but not in those of a trained one."""
    for name, kind, epsilon in (
        (DECODER_GRAPH, "RMSNormalization", bundle.geometry.decoder.rms_norm_eps),
        (VISION_GRAPH, "LayerNormalization", 1e-6),
    ):
        graph = onnx.load(bundle.file(name), load_external_data=False).graph
        found = [a.f for n in graph.node if n.op_type == kind for a in n.attribute if a.name == "epsilon"]
        assert found
        assert set(found) == {np.float32(epsilon)}


def test_vision_contract(bundle):
    t = TYPES[bundle.precision]
    graph = onnx.load(bundle.file(VISION_GRAPH), load_external_data=False).graph
    g = bundle.geometry.vision
    assert shapes(graph.input) == {
        "patches": (t, ["N", "P", g.patch_values]),
        "cos": (t, ["N", "P", g.head_dim // 2]),
        "sin": (t, ["N", "P", g.head_dim // 2]),
    }
    width = bundle.geometry.decoder.hidden_size
    assert shapes(graph.output) == {"visual_embeddings": (t, ["N", "P_merged", width])}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_graphs_differ_in_types_only(precision, pristine_checkpoint):
    """The same operators in the same order; beyond types, only float32 softmax and the last cast come in."""
    from qwen2vl_export.checkpoint import Checkpoint

    geometry = Checkpoint.open(pristine_checkpoint).geometry
    for build in (
        lambda p: decoder_graph(geometry.decoder, p),
        lambda p: vision_graph(geometry.vision, geometry.decoder.hidden_size, p),
    ):
        places = {weight.name: (0, 0) for weight in build("fp32").weights}
        wide, narrow = (build(p).model(places).graph for p in ("fp32", precision))
        kept = [node for node in narrow.node if node.name != "logits"]
        assert [n.op_type for n in kept] == [n.op_type for n in wide.node]
        for node in narrow.node:
            attributes = {a.name: a.i for a in node.attribute}
            if node.op_type == "Attention":
                assert attributes["softmax_precision"] == TensorProto.FLOAT
            if node.op_type in ("RMSNormalization", "LayerNormalization"):
                assert attributes["stash_type"] == TensorProto.FLOAT


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2**-5), ("fp16", 2**-8)])
def test_sixteen_bit_results_are_near_float32(precision, tolerance, pristine_checkpoint, tmp_path):
    """ONNX's reference implementation runs the 16-bit graphs; they stay within 8 units in the last place."""
    bundle = export_checkpoint(pristine_checkpoint, tmp_path / "bundle", precision)
    exact = export_checkpoint(pristine_checkpoint, tmp_path / "fp32")
    number = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(TYPES[bundle.precision]))
    rng = np.random.default_rng(5)

    patches = rng.standard_normal((1, 24, 1176), dtype=np.float32).astype(number)
    cos, sin = (
        table[None].astype(number) for table in vision_rope_tables(4, 6, bundle.geometry.vision.head_dim)
    )
    vision = ReferenceEvaluator(str(bundle.file(VISION_GRAPH)))
    (found,) = vision.run(None, {"patches": patches, "cos": cos, "sin": sin})
    assert found.dtype == number
    expected = PortableVision(exact)(patches.astype(np.float32), 4, 6)
    assert np.abs(found.astype(np.float32) - expected).max() < tolerance * np.abs(expected).max()

    g = bundle.geometry.decoder
    table = np.fromfile(bundle.file(EMBEDDING), number).reshape(g.vocab_size, g.hidden_size)
    positions = np.tile(np.arange(5), (3, 1))
    cos, sin = (
        t[None].astype(number) for t in rope_tables(positions, g.head_dim, g.rope_theta, g.mrope_section)
    )
    ids = rng.integers(0, 500, 5)
    cache = np.zeros((1, g.kv_heads, 8, g.head_dim), number)
    feeds = {
        "inputs_embeds": table[ids][None],
        "cos": cos,
        "sin": sin,
        "past_length": np.array([0]),
        "logit_rows": np.arange(5)[None],
        "past_k.0": cache,
        "past_v.0": cache,
    }
    found, *_ = ReferenceEvaluator(str(bundle.file(DECODER_GRAPH))).run(None, feeds)
    assert found.dtype == np.float32
    decoder = PortableDecoder(exact, 1, 8)
    expected = decoder(decoder.embedding[ids][None], positions[:, None], [0], np.arange(5)[None])
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
