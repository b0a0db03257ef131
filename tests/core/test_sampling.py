"""The sampler against transformers' processors, known vectors of its generator, and its own promises."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, Qwen2VLError

VOCAB = 300


def random_logits(seed, vocab=VOCAB, scale=3.0):
    return np.random.default_rng(seed).normal(scale=scale, size=vocab).astype(np.float32)


def draw(logits, steps=1, prompt=(), **options):
    """The ids of `steps` draws from the same logits."""
    sampler = _core.Sampler(_core.SamplingOptions(**options), len(logits), prompt)
    return [sampler.sample(logits)[0] for _ in range(steps)]


# --- the random numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors for philox4x32-10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert _core.philox4x32(counter, key) == expected


def test_uniform_draws_are_uniform_and_all_different():
    draws = np.array([_core.uniform_draw(seed, step) for seed in (0, 1, 2**64 - 1) for step in range(4000)])
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(np.unique(draws)) == len(draws)
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 600).max() < 5 * np.sqrt(600)


def test_two_consecutive_draws_differ():
    """The counter advances with every token: a sampler that forgets repeats its first number."""
    flat = np.zeros(100_000, np.float32)
    ids = draw(flat, steps=20, temperature=1.0, seed=5)
    assert len(set(ids)) == 20
    assert ids == [int(_core.uniform_draw(5, step) * 100_000) for step in range(20)]


def test_the_same_seed_gives_the_same_draws_and_another_seed_others():
    logits = random_logits(0)
    first = draw(logits, steps=50, temperature=1.0, seed=2**64 - 1)
    assert draw(logits, steps=50, temperature=1.0, seed=2**64 - 1) == first
    assert draw(logits, steps=50, temperature=1.0, seed=2**63) != first


def test_draws_follow_the_probabilities():
    logits = random_logits(1, vocab=12, scale=1.0)
    ids = draw(logits, steps=40_000, temperature=0.7)
    expected = torch.softmax(torch.from_numpy(logits) / 0.7, 0).numpy()
    frequencies = np.bincount(ids, minlength=12) / 40_000
    assert np.abs(frequencies - expected).max() < 5 * np.sqrt(0.25 / 40_000)


# --- greedy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 255, 256, 257, 5000, 151_936])
def test_greedy_takes_the_first_maximum(vocab):
    for seed in range(5):
        logits = random_logits(seed, vocab)
        assert draw(logits) == [int(logits.argmax())]
        places = np.random.default_rng(seed).integers(0, vocab, 3)
        logits[places] = logits.max() + 1
        assert draw(logits) == [int(places.min())]


def test_masked_logits_are_never_chosen():
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[17] = -3e38
    assert draw(logits) == [17]
    assert set(draw(logits, steps=20, temperature=1.0)) == {17}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 16, 299])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.3}, {"logprobs": 2}])
def test_overflowed_logits_are_an_error_with_the_step(bad, place, options):
    logits = random_logits(0)
    sampler = _core.Sampler(_core.SamplingOptions(**options), VOCAB)
    sampler.sample(logits)
    logits[place] = bad
    word = "NaN" if np.isnan(bad) else "infinite"
    with pytest.raises(Qwen2VLError, match=f"the engine returned {word} logits at step 1"):
        sampler.sample(logits)


@pytest.mark.parametrize("option", ["repetition_penalty", "presence_penalty"])
def test_penalties_that_overflow_name_themselves(option):
    value = {"repetition_penalty": 1e-45, "presence_penalty": -3.4e38}[option]
    sampler = _core.Sampler(_core.SamplingOptions(**{option: value}), VOCAB, np.arange(8, dtype=np.int32))
    logits = np.full(VOCAB, 3e38, np.float32)
    with pytest.raises(Qwen2VLError, match=r"penalties left infinite logits .*repetition_penalty"):
        for _ in range(2):
            sampler.sample(logits)


def test_nothing_but_minus_infinity_is_an_error():
    with pytest.raises(Qwen2VLError, match="step 0"):
        draw(np.full(VOCAB, -np.inf, np.float32))


# --- filters against transformers -----------------------------------------------------------------------


def reference_scores(logits, *, prompt=(), **options):
    processors = LogitsProcessorList()
    if options.get("repetition_penalty", 1.0) != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options.get("temperature", 1.0) != 1.0:
        processors.append(TemperatureLogitsWarper(options["temperature"]))
    if options.get("top_k", 0):
        processors.append(TopKLogitsWarper(options["top_k"]))
    if options.get("top_p", 1.0) < 1:
        processors.append(TopPLogitsWarper(options["top_p"]))
    if options.get("min_p", 0.0) > 0:
        processors.append(MinPLogitsWarper(options["min_p"]))
    return processors(torch.tensor([list(prompt)], dtype=torch.long), torch.from_numpy(logits)[None])[0]


def spread_logits(seed, vocab=VOCAB):
    """Few likely tokens; probabilities far enough apart that no float32 sum falls on a threshold."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(vocab) * -0.11 + rng.uniform(0, 0.02, vocab)).astype(np.float32)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 3, 40, 299, 300, 1000]),
    st.sampled_from([1.0, 0.0, 0.1, 0.5, 0.9, 0.99]),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_filters_keep_what_the_references_keep(seed, temperature, top_k, top_p, min_p):
    logits = spread_logits(seed)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    scores = reference_scores(logits, **options)
    kept = set(torch.nonzero(scores > -torch.inf).flatten().tolist())
    probabilities = torch.softmax(scores.double(), 0).numpy()
    steps = 400
    ids = draw(logits, steps=steps, **options)
    # Every draw is the inverse of the cumulative distribution, in order of ids, at the step's uniform number.
    cumulative = np.cumsum(probabilities)
    for step, token_id in enumerate(ids):
        assert token_id in kept
        uniform = _core.uniform_draw(0, step)
        assert cumulative[token_id] - probabilities[token_id] - 1e-5 <= uniform <= cumulative[token_id] + 1e-5


def test_top_k_keeps_ties_as_the_reference_does():
    logits = np.array([1, 5, 5, 0, 5, 2], np.float32)
    assert torch.isfinite(reference_scores(logits, top_k=2)).sum() == 3
    assert set(draw(logits, steps=200, temperature=1.0, top_k=2)) == {1, 2, 4}


@pytest.mark.parametrize("vocab", [1000, 151_936])
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.05, 0.8, 0.999])
def test_top_p_of_flat_and_steep_distributions(vocab, scale, top_p):
    """The nucleus may be one token or most of the vocabulary: the smallest set with at least top_p."""
    logits = random_logits(3, vocab, scale)
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    kept = np.zeros(vocab, bool)
    kept[order[:size]] = True
    cumulative = np.cumsum(np.where(kept, probabilities, 0))
    for step, token_id in enumerate(draw(logits, steps=30, temperature=1.0, top_p=top_p)):
        assert kept[token_id]
        expected = int(
            np.searchsorted(cumulative, _core.uniform_draw(0, step) * cumulative[-1], side="right")
        )
        assert abs(cumulative[token_id] - cumulative[expected]) <= 2e-5 * cumulative[-1]


@pytest.mark.parametrize("temperature", [0.7, 3.0])
@pytest.mark.parametrize("top_k", [0, 9000])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1 - 1e-12])
def test_top_p_cuts_among_equals_by_id(temperature, top_k, top_p):
    """Thousands of tokens a level, so that the nucleus ends inside one; a third is masked."""
    vocab = 30_000
    logits = np.round(random_logits(11, vocab, 1.0) * 4) / 4
    logits[random_logits(12, vocab) > 1] = -np.inf
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    if top_k:
        weights[logits < logits[order[top_k - 1]]] = 0
    probabilities = weights / weights.sum()
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    kept = np.zeros(vocab, bool)
    kept[order[:size]] = True
    cumulative = np.cumsum(np.where(kept, probabilities, 0))
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for step, token_id in enumerate(draw(logits, steps=60, **options)):
        assert probabilities[token_id] > 0
        assert kept[token_id] or token_id == order[size]  # the rounding of 30,000 float32 weights
        uniform = _core.uniform_draw(0, step) * cumulative[-1]
        assert cumulative[token_id] - probabilities[token_id] - 2e-5 <= uniform <= cumulative[token_id] + 2e-5


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1e6, 1e300])
def test_extreme_temperatures(temperature):
    logits = random_logits(4)
    ids = draw(logits, steps=300, temperature=temperature, top_p=0.9)
    if temperature < 1:
        assert set(ids) == {int(logits.argmax())}
    else:
        assert len(set(ids)) > 150


def test_tiny_temperatures_are_greedy():
    logits = random_logits(4)
    assert draw(logits, steps=3, temperature=1e-300) == [int(logits.argmax())] * 3


# --- penalties ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.5, 1.05, 1.3, 20.0])
def test_repetition_penalty_equals_the_reference(penalty):
    prompt = [1, 5, 5, 200, 299]
    for seed in range(12):
        logits = random_logits(seed)
        sampler = _core.Sampler(_core.SamplingOptions(repetition_penalty=penalty), VOCAB, prompt)
        history = list(prompt)
        for _ in range(8):
            expected = int(reference_scores(logits, prompt=history, repetition_penalty=penalty).argmax())
            assert sampler.sample(logits)[0] == expected
            history.append(expected)


def test_presence_and_frequency_count_the_answer_only():
    """OpenAI's rule: logit - presence * (count > 0) - frequency * count, over the tokens of the answer."""
    for seed in range(12):
        logits = random_logits(seed, scale=1.0)
        best = int(logits.argmax())
        options = {"presence_penalty": 0.4, "frequency_penalty": 0.3}
        sampler = _core.Sampler(_core.SamplingOptions(**options), VOCAB, [best] * 10)
        counts = np.zeros(VOCAB, np.float32)
        for step in range(10):
            expected = int((logits - 0.4 * (counts > 0) - 0.3 * counts).argmax())
            assert sampler.sample(logits)[0] == expected
            counts[expected] += 1
            if step == 0:
                assert expected == best  # the prompt's ten don't count


def test_penalties_leave_the_callers_logits_alone():
    logits = random_logits(0)
    before = logits.copy()
    draw(logits, steps=3, repetition_penalty=2.0, temperature=1.0, top_p=0.5)
    np.testing.assert_array_equal(logits, before)


# --- log-probabilities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_k": 5, "repetition_penalty": 1.5}])
def test_logprobs_are_the_models_own(options):
    logits = random_logits(7, vocab=151_936)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 0).numpy()
    sampler = _core.Sampler(_core.SamplingOptions(logprobs=4, **options), len(logits), [int(logits.argmax())])
    for _ in range(5):
        token_id, logprob, alternatives = sampler.sample(logits)
        assert logprob == pytest.approx(expected[token_id], abs=1e-5)
        assert [i for i, _ in alternatives] == np.argsort(-expected, kind="stable")[:4].tolist()
        np.testing.assert_allclose(
            [value for _, value in alternatives], np.sort(expected)[::-1][:4], atol=1e-5
        )


def test_logprobs_zero_reports_the_chosen_token_alone():
    logits = random_logits(8)
    assert _core.Sampler(_core.SamplingOptions(logprobs=0), VOCAB).sample(logits)[1] < 0
    assert _core.Sampler(_core.SamplingOptions(logprobs=0), VOCAB).sample(logits)[2] == ()
    assert _core.Sampler(_core.SamplingOptions(), VOCAB).sample(logits)[1:] == (None, ())
    assert len(_core.Sampler(_core.SamplingOptions(logprobs=10**9), VOCAB).sample(logits)[2]) == VOCAB


# --- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1},
        {"top_p": -0.1}, {"top_p": 1.5}, {"top_p": float("nan")}, {"min_p": -1}, {"min_p": 1.1},
        {"repetition_penalty": 0}, {"repetition_penalty": -2}, {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")}, {"frequency_penalty": float("-inf")}, {"logprobs": -2},
    ],
)  # fmt: skip
def test_bad_options_are_refused_with_their_name_and_value(option):
    name, value = next(iter(option.items()))
    with pytest.raises(InputError, match=f"{name} must be .*, got {value:g}"):
        _core.SamplingOptions(**option)


def test_a_refusal_shows_what_is_wrong_with_the_value():
    """Not "between 0 and 1, got 1", nor "positive, got inf"."""
    with pytest.raises(InputError, match=r"top_p must be between 0 and 1, got 1\.0000001$"):
        _core.SamplingOptions(top_p=1.0000001)
    for option in ("temperature", "repetition_penalty"):
        with pytest.raises(InputError, match=f"{option} must be .*positive and finite.*, got inf$"):
            _core.SamplingOptions(**{option: float("inf")})


def test_bad_prompt_and_logits_are_refused():
    with pytest.raises(InputError, match="token id 300"):
        _core.Sampler(_core.SamplingOptions(), VOCAB, [300])
    with pytest.raises(InputError, match="cannot have 0"):
        _core.Sampler(_core.SamplingOptions(), 0)
    with pytest.raises(InputError, match="299 values"):
        _core.Sampler(_core.SamplingOptions(), VOCAB).sample(np.zeros(299, np.float32))


def test_draws_are_spread_over_rows_of_a_seed_sequence():
    """Neighbouring seeds are as good as any: the first draws of 2000 seeds fill the range."""
    draws = [_core.uniform_draw(seed, 0) for seed in range(2000)]
    assert max(collections.Counter(int(d * 20) for d in draws).values()) < 150
