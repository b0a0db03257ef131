"""The cuda backend on the CPU as a device and on a GPU: answers equal the cpu backend's, token for token."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import _core, vision
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.cpu.executors import CpuVision
from qwen2vl_rt.backends.cuda import executors
from qwen2vl_rt.backends.cuda.backend import CudaBackend
from qwen2vl_rt.backends.cuda.executors import DeviceVision, device_decoder
from qwen2vl_rt.backends.cuda.onnx_session import Provider, Tensor, open_session
from qwen2vl_rt.backends.cuda.plan import plan_cuda
from qwen2vl_rt.backends.cuda.settings import CudaSettings
from qwen2vl_rt.backends.select import select_backend
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BackendError, MemoryLimitError
from qwen2vl_rt.lowering import matmul_nbits
from qwen2vl_rt.lowering.cuda import lower_decoder
from qwen2vl_rt.lowering.linear import SHARED
from qwen2vl_rt.processing.processor import Visual
from qwen2vl_rt.refusal import check_plan
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.vision import VisionTower
from qwen2vl_rt.weights import load_graph
from tests.gpu import emulation
from tests.gpu.checkpoint import small_checkpoint
from tests.support.bundle_loop import cpu_loop, decoder_loop, requests, token_ids

LIMITS = SessionLimits(max_length=64, max_batch=2, max_pixels=28 * 28 * 16, prefill_chunk=9)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("cuda-backend")
    checkpoint = small_checkpoint(folder / "checkpoint")
    return {
        kind: export_checkpoint(checkpoint, folder / kind, kind)
        for kind in ("fp32", "bf16", "int4", "int8", "int4-int8")
    }


def provider_of(device, compiled: bool = False, **settings: bool) -> Provider:
    """ONNX Runtime's on the GPU; in the place of an emulated one the CPU's, which shares its memory."""
    chosen = CudaSettings(compiled, **settings)
    if isinstance(device, _core.HostDevice) or emulation.is_emulated():
        emulation.share_memory(True)
        chosen = replace(chosen, graphs=False)
        return Provider("CPUExecutionProvider", "cpu", settings=chosen, operators=emulation.is_emulated())
    from qwen2vl_rt.backends.cuda.provider import cuda_provider

    return cuda_provider(device.stream, chosen)


CALLS = pytest.mark.parametrize(
    "compiled",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(not cuda.status().built, reason=cuda.status().reason)),
    ],
    ids=["Python binding", "C API"],
)


@pytest.mark.parametrize(
    "sampling", [_core.SamplingOptions(), _core.SamplingOptions(temperature=0.9, top_p=0.95, seed=4)]
)
@pytest.mark.parametrize("grouped", [False, True])
@CALLS
def test_float32_answers_equal_the_cpu_backends(bundles, device, compiled, grouped, sampling):
    """Both attentions on the CPU; on a GPU float32 has the portable one only."""
    if grouped and not isinstance(device, _core.HostDevice):
        pytest.skip("GroupQueryAttention's CUDA kernels are 16 bit")
    bundle = bundles["fp32"]
    expected = cpu_loop(bundle, LIMITS).generate(requests(bundle, sampling=sampling))
    steps, _ = device_decoder(bundle, LIMITS, device, provider_of(device, compiled, grouped=grouped))
    actual = decoder_loop(bundle, steps).generate(requests(bundle, sampling=sampling))
    assert token_ids(actual) == token_ids(expected)


@pytest.mark.parametrize("kind", ["fp32", "int4", "int8", "int4-int8"])
def test_steps_of_our_own_kernels(bundles, device, monkeypatch, kind):
    """They choose the tokens that ONNX Runtime's choose, all in float32: one row, several, rows that move."""
    bundle = bundles[kind]
    monkeypatch.setattr(executors, "compute_dtype", lambda _bundle: "float32")
    monkeypatch.setattr(matmul_nbits, "ACCURACY_LEVEL", 1)  # the CPU's kernels don't round activations either
    host = isinstance(device, _core.HostDevice)
    graphs, load = [], executors.open_session

    def open_session(model, *rest):
        graphs.append(model)
        return load(model, *rest)

    monkeypatch.setattr(executors, "open_session", open_session)
    answers = []
    for own in (False, True):
        graphs.clear()
        provider = provider_of(device, compiled=not host, own=own)
        steps, _ = device_decoder(bundle, LIMITS, device, provider)
        loop = decoder_loop(bundle, steps)
        answers += [token_ids(loop.generate(requests(bundle))) for _ in range(2)]
    assert answers[1:] == answers[:1] * 3
    (prompt,) = graphs  # decode steps have no graph in ONNX Runtime
    layers = [node for node in prompt.graph.node if "Linear_float32" in node.op_type]
    assert len(layers) == (2 * 4 + 1 if provider.operators else 0)
    if provider.operators and kind != "int4-int8":  # whose prompts have weights of their own
        assert {node.input[SHARED] for node in layers} <= {value.name for value in prompt.graph.input}
        assert sum(len(tensor.raw_data) for tensor in prompt.graph.initializer) < 1000


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int4"])
def test_a_layer_is_four_operators_and_attention(bundles, kind):
    model, weights = load_graph(bundles[kind], "decoder.onnx")
    narrow = TensorProto.BFLOAT16 if kind == "int4" else None
    lower_decoder(model, weights, bundles[kind].geometry, narrow=narrow, own_products=True)
    kinds = [node.op_type for node in model.graph.node]
    name = ("Blocks" if kind == "int4" else "Plain") + (
        "Linear_float32" if kind == "fp32" else "Linear_bfloat16"
    )
    assert kinds[:10] == [name, "GroupQueryAttention", name, name, name] * 2
    assert not {"Add", "Mul", "Sigmoid", "RotaryEmbedding", "MatMul", "MatMulNBits", "Transpose"} & set(kinds)


@CALLS
def test_float32_vision_equals_the_cpu_backends(bundles, device, compiled):
    bundle, rng = bundles["fp32"], np.random.default_rng(1)
    geometry = bundle.geometry.vision
    patches = rng.standard_normal((3, 24, geometry.patch_values), dtype=np.float32)
    tables = [rng.standard_normal((24, geometry.head_dim // 2), dtype=np.float32) for _ in range(2)]
    expected = CpuVision(bundle, 2).encode(patches, *tables)
    tower = DeviceVision(bundle, device, "float32", provider_of(device, compiled))
    for part in (slice(0, 1), slice(None)):  # the buffers grow
        actual = tower.encode(patches[part], *tables).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.skipif(not cuda.status().built, reason=cuda.status().reason)
def test_the_c_api_says_what_went_wrong():
    """ONNX Runtime's own words, and the session stays usable."""
    provider = Provider("CPUExecutionProvider", "cpu", settings=CudaSettings(graphs=False))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "sum",
        [value(name, TensorProto.FLOAT, [None, 3]) for name in "ab"],
        [value("c", TensorProto.FLOAT, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = open_session(model, {}, Path("."), provider)
    a, b, c = (np.full((2, 3), number, np.float32) for number in (1, 2, 0))

    def tensors():
        return [
            Tensor("a", (2, 3), a.ctypes.data),
            Tensor("b", (2, 3), b.ctypes.data),
            Tensor("c", (2, 3), c.ctypes.data, output=True),
        ]

    with pytest.raises(BackendError, match="failed at a run: Got invalid dimensions for input: a"):
        session.run(session.bind([tensors()[0]._replace(shape=(2, 2)), *tensors()[1:]]))
    session.run(session.bind(tensors()))
    np.testing.assert_array_equal(c, np.full((2, 3), 3, np.float32))
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match=r"loading a graph: .*NoSuchOperator"):
        open_session(model, {}, Path("."), provider)


def test_embeddings_of_one_call_stay_on_the_device(bundles, monkeypatch):
    """Pictures of two sizes and a video: what one call computed is not copied; the rest is put together."""
    bundle, rng = bundles["fp32"], np.random.default_rng(2)
    geometry = bundle.geometry.vision
    visuals = []
    for kind, (t, h, w) in (("image", (1, 4, 6)), ("video", (3, 4, 6)), ("image", (1, 2, 4))):
        patches = rng.standard_normal((t, h * w, geometry.patch_values), np.float32)
        visuals.append(Visual(kind, (t, h, w), patches, 28, 28, b""))
    cpu = CpuVision(bundle, 2)
    expected = VisionTower(cpu, geometry).encode(visuals)

    class Kept:
        def __init__(self, embeddings):
            self.embeddings = embeddings

        def visual(self, begin, end):
            return "kept", self.embeddings[begin:end].reshape(-1, self.embeddings.shape[-1])

        def numpy(self):
            return self.embeddings

    class Executor:
        def encode(self, *arguments):
            return Kept(cpu.encode(*arguments))

    for per_call, kept in ((4096, [True] * 3), (48, [True, False, True])):
        monkeypatch.setattr(vision, "PATCHES_PER_CALL", per_call)
        actual = VisionTower(Executor(), geometry).encode(visuals)
        assert [isinstance(value, tuple) for value in actual] == kept
        for value, want in zip(actual, expected, strict=True):
            rows = value[1] if isinstance(value, tuple) else value
            np.testing.assert_allclose(rows, want, rtol=1e-5, atol=1e-5)


def test_the_settings_come_from_the_environment(monkeypatch):
    assert CudaSettings.from_environment() == CudaSettings(True, True, True, True, True)
    monkeypatch.setenv("QWEN2VL_CUDA_STARTS", "in-turn")
    assert CudaSettings.from_environment() == CudaSettings(early=False)
    monkeypatch.delenv("QWEN2VL_CUDA_STARTS")
    monkeypatch.setenv("QWEN2VL_CUDA_CALLS", "python")
    monkeypatch.setenv("QWEN2VL_CUDA_GRAPHS", "0")
    assert CudaSettings.from_environment() == CudaSettings(compiled=False, graphs=False, grouped=True)
    monkeypatch.setenv("QWEN2VL_CUDA_ATTENTION", "flash")
    with pytest.raises(BackendError, match="QWEN2VL_CUDA_ATTENTION=flash: choose grouped or portable"):
        CudaSettings.from_environment()


@pytest.mark.gpu
@pytest.mark.skipif(emulation.is_emulated(), reason="ONNX Runtime's CUDA provider is not emulated")
@CALLS
@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "launched"])
@pytest.mark.parametrize("own", [True, False], ids=["own layers", "ONNX Runtime's"])
@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_16_bit_answers_run_and_repeat(bundles, kind, own, graphs, compiled):
    """Twice the same through prompts, recorded steps and rows that move; close to the CPU's."""
    from qwen2vl_rt.backends.cuda.provider import cuda_device

    bundle, sampling = bundles[kind], _core.SamplingOptions(logprobs=64)
    expected = cpu_loop(bundle, LIMITS).generate(requests(bundle, sampling=sampling))
    answers = []
    for _ in range(2):
        device, provider = cuda_device(CudaSettings(compiled, graphs, own=own))
        steps, _ = device_decoder(bundle, LIMITS, device, provider)
        loop = decoder_loop(bundle, steps)
        for _ in range(3):
            results = loop.generate(requests(bundle, sampling=sampling))
            assert_close(results, expected)
            answers.append(token_ids(results))
    assert all(answer == answers[0] for answer in answers)


def assert_close(actual: list[_core.Result], expected: list[_core.Result]) -> None:
    """Log-probabilities of likely tokens, in each answer up to the first token that another was taken for.

    Rounding to bfloat16 moves them by 0.05 at most, int4's 8-bit activations on a CPU by 0.1; a residual that
    is left out or a wrong rotation by 1.7.
    """
    compared = 0
    for result, want in zip(actual, expected, strict=True):
        for (token, _, likely), (wanted, _, close) in zip(result.logprobs, want.logprobs, strict=True):
            found = dict(likely)
            pairs = [(found[each], value) for each, value in close if each in found]
            assert len(pairs) > len(close) / 2
            np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=0, atol=0.3)
            compared += 1
            if token != wanted:
                break
    assert compared > len(expected)  # decode steps, too


def test_selection_says_why():
    status = cuda.status()
    chosen = select_backend("auto")
    if status.devices == 0:
        assert chosen.name == "cpu"
        assert status.reason in chosen.reason
        with pytest.raises(BackendError, match=re.escape(f"can't run here: {status.reason}")):
            select_backend("cuda")
    assert select_backend("cpu").reason == "asked for"
    with pytest.raises(BackendError, match="'auto', 'cpu', 'cuda' or 'tensorrt'"):
        select_backend("gpu")


def test_the_plan_counts_the_gpus_memory_and_refuses_before_loading(bundles):
    bundle = bundles["bf16"]
    plan = plan_cuda(bundle, LIMITS, 10 << 30)
    decoder = bundle.geometry.decoder
    kv = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * 2
    assert plan.parts["KV cache"] == LIMITS.max_batch * LIMITS.max_length * kv
    tied = bundle.files["embedding.bin"].size
    assert plan.parts["decoder weights"] == bundle.files["decoder.weights"].size + tied
    long = SessionLimits(max_length=1 << 20, max_batch=2, max_pixels=28 * 28, prefill_chunk=9)
    small = plan_cuda(bundle, long, 770 << 20)
    with pytest.raises(MemoryLimitError, match="max_length=") as error:
        check_plan(bundle, CudaBackend(""), small)
    fitting = int(str(error.value).split("max_length=")[1].split()[0].rstrip("."))
    limits = SessionLimits(max_length=fitting, max_batch=2, max_pixels=28 * 28, prefill_chunk=9)
    assert plan_cuda(bundle, limits, 770 << 20).total <= 770 << 20


def test_the_device_cache_has_the_planned_size(bundles):
    bundle = bundles["fp32"]
    _, cache = device_decoder(bundle, LIMITS, _core.HostDevice(), Provider("CPUExecutionProvider", "cpu"))
    planned = plan_cuda(bundle, LIMITS, 1 << 40).parts["KV cache"]
    assert planned <= cache.bytes <= planned + 4096 * 2 * bundle.geometry.decoder.layers
    assert executors.compute_dtype(bundle) == "float32"
