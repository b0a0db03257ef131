"""The device's sampler chooses exactly the tokens that the CPU's chooses, and reports the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, Qwen2VLError


def both(device, vocab, prompt=(), **options):
    chosen = _core.SamplingOptions(**options)
    return _core.Sampler(chosen, vocab, prompt), _core.RowSampler(device, chosen, vocab, prompt)


def assert_same(sampler, row_sampler, logits):
    expected, actual = sampler.sample(logits), row_sampler.sample(logits)
    assert actual[0] == expected[0]
    if expected[1] is None:
        assert actual[1:] == (None, ())
        return
    assert actual[1] == pytest.approx(expected[1], abs=1e-6)
    assert [i for i, _ in actual[2]] == [i for i, _ in expected[2]]
    np.testing.assert_allclose([p for _, p in actual[2]], [p for _, p in expected[2]], atol=1e-6)


OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5, 50.0]),
        "top_k": st.sampled_from([0, 1, 3, 40, 299, 300, 1000]),
        "top_p": st.sampled_from([1.0, 0.0, 0.1, 0.5, 0.9, 0.99, 0.99999]),
        "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 0.8, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, -0.2, 0.3]),
        "seed": st.integers(0, 2**64 - 1),
        "logprobs": st.sampled_from([-1, 0, 1, 7, 128]),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 17, 255, 256, 257, 300, 2000]),
    st.sampled_from([0.0, 0.01, 1.0, 6.0, 100.0]),
    st.sampled_from([0.0, 0.5]),
    OPTIONS,
)
def test_tokens_equal_the_cpu_samplers(device, seed, vocab, scale, grain, options):
    """Any logits: flat, steep, with many equal values, with masked ones; any options together."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=vocab).astype(np.float32)
    if grain:
        logits = np.round(logits / np.float32(grain)) * np.float32(grain)
    if seed % 3 == 0:
        logits[rng.random(vocab) < 0.3] = -np.inf
        logits[seed % vocab] = 1.0
    pair = both(device, vocab, rng.integers(0, vocab, 5), **options)
    for _ in range(4):
        assert_same(*pair, logits)


@pytest.mark.kernels("sampling/sample_kernel.cu")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.1, "logprobs": 5},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.05},
        {"temperature": 1.5, "logprobs": 20},
    ],
)
def test_a_published_vocabulary(device, options):
    rng = np.random.default_rng(5)
    pair = both(device, 151_936, rng.integers(0, 151_936, 300), seed=9, **options)
    for step in range(6):
        logits = rng.normal(scale=3, size=151_936).astype(np.float32)
        if step % 2:
            logits = np.round(logits * 8) / 8  # as 16-bit logits repeat
        assert_same(*pair, logits.astype(np.float32))


@pytest.mark.kernels("sampling/sample_kernel.cu")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 16, 299])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.3}, {"logprobs": 2}])
def test_overflowed_logits_are_the_cpus_error(device, bad, place, options):
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32)
    _, sampler = both(device, 300, **options)
    sampler.sample(logits)
    logits[place] = bad
    word = "NaN" if np.isnan(bad) else "infinite"
    with pytest.raises(Qwen2VLError, match=f"the engine returned {word} logits at step 1"):
        sampler.sample(logits)
    with pytest.raises(Qwen2VLError, match="only -infinity as logits"):
        sampler.sample(np.full(300, -np.inf, np.float32))


def test_too_many_logprobs_are_refused(device):
    with pytest.raises(InputError, match="logprobs=129"):
        both(device, 300, logprobs=129)
