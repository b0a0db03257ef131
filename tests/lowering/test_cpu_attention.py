"""The project's own attention operators on every instruction set of this CPU, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qwen2vl_rt import InputError, _core
from qwen2vl_rt.lowering.cpu_attention import DOMAIN

# Allowed errors: as a part of the largest value that is averaged; as a part of the result's norm for products
# of codes (scores whose standard deviation is 4, from numbers whose error's is 1/150 of theirs) and of
# bfloat16 numbers (scores whose standard deviation is 1, of numbers that are rounded by up to 1/256).
EXACT, CODES, BFLOAT16 = 2e-6, 0.025, 0.005


@pytest.fixture(params=_core.instruction_sets())
def instruction_set(request) -> str:
    _core.limit_instruction_set(request.param)
    yield request.param
    _core.limit_instruction_set("")


def session(operator: str, inputs: dict[str, np.ndarray], outputs: list[str], **attributes):
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), outputs, operator, domain=DOMAIN, **attributes)],
        operator,
        [helper.make_tensor_value_info(k, kinds[v.dtype], v.shape) for k, v in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(_core.__file__)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=12)
    return ort.InferenceSession(model.SerializeToString(), options)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [B, T, heads, D] turned by [B, T, D / 2] angles."""
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = cos[:, :, None].astype(np.float64), sin[:, :, None].astype(np.float64)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int | None = None) -> np.ndarray:
    """q [T, heads, D] over k, v [S, kv_heads, D]; with `first`, token t sees the keys up to first + t."""
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("thd,shd->hts", q, np.repeat(k, group, axis=1)) / np.sqrt(q.shape[2])
    if first is not None:
        unseen = np.arange(k.shape[0])[None] > first + np.arange(q.shape[0])[:, None]
        scores[:, unseen] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, np.repeat(v, group, axis=1).astype(np.float64))


def tables(rng: np.random.Generator, rows: int, tokens: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    angles = rng.uniform(0, 6, (rows, tokens, dim // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@pytest.mark.parametrize(
    ("pictures", "patches", "heads", "dim"),
    [
        (1, 4, 16, 80),
        (2, 50, 3, 80),
        (1, 513, 2, 80),
        (1, 2100, 1, 16),
        (1, 65, 2, 20),
        (1, 1, 1, 2),
        (3, 300, 1, 128),
        (1, 49, 2, 256),
    ],
)
@pytest.mark.parametrize("codes", [0, 1])
def test_pictures(instruction_set, pictures, patches, heads, dim, codes):
    rng = np.random.default_rng(patches)
    cos, sin = tables(rng, pictures, patches, dim)
    qkv = 2 * rng.standard_normal((pictures, patches, 3, heads, dim), np.float32)
    inputs = {"qkv": qkv.reshape(pictures, patches, -1), "cos": cos, "sin": sin}
    (actual,) = session("PictureAttention", inputs, ["y"], codes=codes).run(None, inputs)
    q, k = rotated(qkv[:, :, 0], cos, sin), rotated(qkv[:, :, 1], cos, sin)
    expected = [attention(q[i], k[i], qkv[i, :, 2]) for i in range(pictures)]
    expected = np.reshape(expected, actual.shape)
    if codes and instruction_set == "avx512-bfloat16":
        assert np.linalg.norm(actual - expected) < CODES * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT * np.abs(qkv[:, :, 2]).max())


def common(qkv: np.ndarray) -> None:
    """A number that every key has: no softmax sees it, but codes or bfloat16 numbers with it are coarse."""
    qkv[:, :, 1, :, 3] += 1000


def far_above(qkv: np.ndarray) -> None:
    """Channels that would decide on the scale of all."""
    qkv[:, :, 0, :, 3] *= 64
    qkv[:, :, 1, :, 7] *= 64


@pytest.mark.parametrize("change", [common, far_above])
def test_pictures_whose_numbers_differ_much_in_size(instruction_set, change):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((1, 300, 3, 2, 80), np.float32)
    change(qkv)
    cos, sin = np.ones((1, 300, 40), np.float32), np.zeros((1, 300, 40), np.float32)
    inputs = {"qkv": qkv.reshape(1, 300, -1), "cos": cos, "sin": sin}
    (actual,) = session("PictureAttention", inputs, ["y"], codes=1).run(None, inputs)
    expected = attention(*qkv[0].swapaxes(0, 1)).reshape(actual.shape)
    assert np.linalg.norm(actual - expected) < CODES * np.linalg.norm(expected)


@pytest.mark.parametrize("codes", [0, 1])
def test_pictures_with_enormous_scores(instruction_set, codes):
    """Each patch looks at one other: its values come out, not the NaN of weights beyond all numbers."""
    rng = np.random.default_rng(1)
    keys = np.sign(rng.standard_normal((64, 2, 80)))
    qkv = np.stack([1e8 * keys, 1e8 * keys, rng.standard_normal((64, 2, 80))])[None].swapaxes(1, 2)
    inputs = {"qkv": qkv.reshape(1, 64, -1).astype(np.float32)}
    inputs |= {"cos": np.ones((1, 64, 40), np.float32), "sin": np.zeros((1, 64, 40), np.float32)}
    (actual,) = session("PictureAttention", inputs, ["y"], codes=codes).run(None, inputs)
    np.testing.assert_allclose(actual[0], qkv[0, :, 2].reshape(64, -1), rtol=0.005)


@pytest.mark.parametrize("codes", [0, 1])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_nan_stays_nan(instruction_set, codes, part):
    """What is not a number in a picture's layers must show in the end, not become some number."""
    qkv = np.random.default_rng(2).standard_normal((1, 300, 3, 2, 80), np.float32)
    qkv[0, 1, part, 0, 5] = np.nan
    inputs = {"qkv": qkv.reshape(1, 300, -1)}
    inputs |= dict(zip(("cos", "sin"), tables(np.random.default_rng(3), 1, 300, 80), strict=True))
    (y,) = session("PictureAttention", inputs, ["y"], codes=codes).run(None, inputs)
    lost = np.isnan(y.reshape(300, 2, 80))
    assert lost[1, 0, 5] and not lost[:, 1].any()
    assert lost[:, 0].all() if part == 1 else lost[1, 0].all() if part == 0 else lost[:, 0, 5].all()


CAPACITY = 2100
STEPS = {
    "first tokens": ([0], 70),
    "a chunk": ([300], 33),
    "one token": ([1023], 1),
    "a chunk over the end of a block": ([1020], 12),
    "rows of different lengths": ([0, 2090, 1], 1),
    "drafts": ([5, 1300], 4),
    "chunks of two rows": ([0, 511], 9),
}


class Step:
    def __init__(self, past: list[int], tokens: int, heads: int, kv_heads: int, dim: int):
        rng = np.random.default_rng(tokens)
        rows, cache = len(past), (len(past), kv_heads, CAPACITY, dim)
        self.past, self.tokens = past, tokens
        self.new = {
            name: rng.standard_normal((rows, tokens, count, dim), np.float32)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        }
        self.inputs = {name: value.reshape(rows, tokens, -1) for name, value in self.new.items()}
        self.inputs |= dict(zip(("cos", "sin"), tables(rng, rows, tokens, dim), strict=True))
        for name in ("past_k", "past_v"):
            self.inputs[name] = np.full(cache, np.nan, np.float32)  # what was never written must not matter
            for row, length in enumerate(past):
                self.inputs[name][row, :, :length] = rng.standard_normal((kv_heads, length, dim))
        self.inputs["past_length"] = np.array(past, np.int64)

    def session(self, bfloat16: int = 0):
        return session("CachedAttention", self.inputs, ["y", "present_k", "present_v"], bfloat16=bfloat16)

    def check(
        self, y: np.ndarray, present_k: np.ndarray, present_v: np.ndarray, rounded: bool = False
    ) -> None:
        angles = self.inputs["cos"], self.inputs["sin"]
        q, k = rotated(self.new["q"], *angles), rotated(self.new["k"], *angles)
        for row, past in enumerate(self.past):
            keys = np.concatenate([self.inputs["past_k"][row, :, :past].swapaxes(0, 1), k[row]])
            values = np.concatenate([self.inputs["past_v"][row, :, :past].swapaxes(0, 1), self.new["v"][row]])
            end = past + self.tokens
            np.testing.assert_allclose(present_k[row, :, :end].swapaxes(0, 1), keys, rtol=0, atol=2e-6)
            np.testing.assert_array_equal(present_v[row, :, :end].swapaxes(0, 1), values)
            expected = attention(q[row], keys, values, first=past).reshape(y[row].shape)
            if rounded:
                assert np.linalg.norm(y[row] - expected) < BFLOAT16 * np.linalg.norm(expected)
            else:
                allowed = EXACT * np.abs(values).max()
                np.testing.assert_allclose(y[row], expected, rtol=0, atol=allowed)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(12, 2, 128), (7, 1, 16), (4, 4, 20)])
@pytest.mark.parametrize(("past", "tokens"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("bfloat16", [0, 1])
def test_cached(instruction_set, past, tokens, heads, kv_heads, dim, bfloat16):
    step = Step(past, tokens, heads, kv_heads, dim)
    rounded = bool(bfloat16) and instruction_set == "avx512-bfloat16"
    step.check(*step.session(bfloat16).run(None, step.inputs), rounded)


def test_rounding_does_not_depend_on_how_many_tokens_come_together():
    if "avx512-bfloat16" not in _core.instruction_sets():
        pytest.skip("no products of bfloat16 numbers on this CPU")
    past, tokens = 1020, 7  # over the end of a block of keys
    step = Step([past], tokens, 12, 2, 128)
    together, keys, values = step.session(bfloat16=1).run(None, step.inputs)
    for token in range(tokens):
        alone = step.inputs | {"past_k": keys, "past_v": values, "past_length": np.array([past + token])}
        alone |= {name: step.inputs[name][:, token : token + 1] for name in ("q", "k", "v", "cos", "sin")}
        (y, *_) = session("CachedAttention", alone, ["y", "all_k", "all_v"], bfloat16=1).run(None, alone)
        np.testing.assert_array_equal(y[0, 0], together[0, token])


@pytest.mark.parametrize(("past", "tokens"), STEPS.values(), ids=STEPS)
def test_the_cache_is_updated_in_place(past, tokens):
    step = Step(past, tokens, 4, 2, 32)
    engine = step.session()
    binding = engine.io_binding()
    bound = {name: value.copy() for name, value in step.inputs.items()}
    y = np.empty_like(step.inputs["q"])
    outputs = {"y": y, "present_k": bound["past_k"], "present_v": bound["past_v"]}
    for name, array in bound.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    engine.run_with_iobinding(binding)
    step.check(y, bound["past_k"], bound["past_v"])
    for row, length in enumerate(past):  # and nowhere else
        assert np.isnan(bound["past_k"][row, :, length + tokens :]).all()


def test_threads_change_nothing():
    step = Step([2000], 1, 12, 2, 128)
    first = step.session().run(None, step.inputs)[0]
    for _ in range(5):
        np.testing.assert_array_equal(step.session().run(None, step.inputs)[0], first)


def test_a_full_cache_is_refused():
    step = Step([CAPACITY - 1], 2, 4, 2, 32)
    with pytest.raises(
        Exception, match=f"{CAPACITY} positions cannot hold 1 rows and {CAPACITY + 1} positions"
    ):
        step.session().run(None, step.inputs)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(InputError, match="'sse9': take portable, avx2"):
        _core.limit_instruction_set("sse9")
