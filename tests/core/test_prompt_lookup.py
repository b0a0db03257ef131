"""Drafts looked up in prompt and answer: the answer is the plain loop's, token for token, in fewer steps."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, Qwen2VLError
from tests.support.toy_decoder import (
    HEAD_DIM,
    IMAGE_PAD,
    SECTIONS,
    THETA,
    TOKEN_BYTES,
    VIDEO_PAD,
    VOCAB,
    Prompt,
    Toy,
    ToyModel,
    reference_answer,
)

LIMIT = _core.LONGEST_DRAFT


class HabitModel(ToyModel):
    """The toy model with a habit: each token has one that likes to follow it, more or less strongly.

    Its answers wander through the same few passages, as text does, so that lookups come true now and then.
    """

    def __init__(self, seed=0, strength=9.0, alphabet=12):
        super().__init__(seed)
        rng = np.random.default_rng(500 + seed)
        self.next = np.full((VOCAB, VOCAB), -4.0)
        self.next[:, :alphabet] = rng.normal(size=(VOCAB, alphabet)) / 2
        self.next[np.arange(VOCAB), rng.integers(0, alphabet, VOCAB)] += strength

    def ids(self, embeds):
        return ((embeds[:, None] - self.embedding) ** 2).sum(-1).argmin(1)

    def run(self, embeds, cos, sin, past, keys, values):
        return super().run(embeds, cos, sin, past, keys, values) + self.next[self.ids(embeds)]


def habit_toy(folder, *, strength=9.0, alphabet=12, **options):
    toy = Toy(folder, **options)
    toy.model = toy.executor.model = HabitModel(options.get("seed", 0), strength, alphabet)
    return toy


@pytest.fixture
def toy(tmp_path):
    return habit_toy(tmp_path)


def drafts(toy, run):
    """The drafts that `run` has checked, and the ids that stood behind them: [(draft, position), ...]."""
    seen = []

    def record(step):
        if not step.prompt and step.tokens > 1:
            seen.append((toy.model.ids(step.inputs_embeds[0])[1:].tolist(), int(step.past_length[0])))

    toy.executor.before_run = record
    run()
    toy.executor.before_run = None
    return seen


def outcome(result):
    logprobs = [
        (token, alternatives and [i for i, _ in alternatives]) for token, _, alternatives in result.logprobs
    ]
    return (result.token_ids, result.text, result.finish_reason, result.stop_string, logprobs)


TEXT = Prompt([1, 2, 3, 4, 5])
PASSAGE = Prompt([5, 3, 8, 1, 9, 2, 7, 11, 4, 6, 0, 10] * 2)
PICTURE = Prompt([7, 8], (IMAGE_PAD, (1, 4, 6), 1), [9, 10, 11])
LONG_VIDEO = Prompt([30, 31], (VIDEO_PAD, (9, 4, 4), 4), [32, 33])
PROMPTS = {"text": TEXT, "passage": PASSAGE, "picture": PICTURE, "long video": LONG_VIDEO}


# --- the same answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("limit", [1, 2, 5, LIMIT])
def test_the_answer_is_that_of_a_plain_recomputation_in_fewer_steps(toy, prompt, limit):
    """Pictures make the rope delta negative, the long video positive: drafts need positions of their own."""
    result = toy.generate(prompt, max_new_tokens=60, prompt_lookup=limit)
    assert result.token_ids == reference_answer(toy.model, prompt, 60)
    assert result.steps < 59
    assert 0 < result.accepted_tokens <= result.drafted_tokens
    assert result.steps + result.accepted_tokens in (59, 60)  # the last may be drafted or given besides


def test_drafts_have_the_positions_that_follow(toy):
    """cos and sin of a draft are those of the rows that the whole sequence would have there."""
    rows = {}

    def record(step):
        if not step.prompt:
            for i in range(step.tokens):
                rows[int(step.past_length[0]) + i] = step.cos[0, i].copy()

    toy.executor.before_run = record
    toy.generate(PICTURE, max_new_tokens=60, prompt_lookup=8)
    _, delta = _core.mrope_positions(PICTURE.ids, PICTURE.grids, IMAGE_PAD, VIDEO_PAD, 2)
    assert delta != 0
    for position, cos in rows.items():
        expected, _ = _core.rope_table(np.full((3, 1), position + delta), HEAD_DIM, THETA, SECTIONS)
        np.testing.assert_array_equal(cos, expected[0])


@st.composite
def calls(draw):
    """Prompts made of a few passages, and options of every kind."""
    passages = draw(st.lists(st.lists(st.integers(0, 11), min_size=2, max_size=8), min_size=1, max_size=3))
    requests = []
    for number in range(draw(st.integers(1, 4))):
        parts = [
            list(passages[i % len(passages)])
            for i in draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
        ]
        if draw(st.booleans()):
            parts.append((IMAGE_PAD, (1, 2 * draw(st.integers(1, 3)), 4), number))
            parts.append(list(passages[0]))
        options = {"max_new_tokens": draw(st.integers(1, 40))}
        if draw(st.booleans()):
            options["stop_ids"] = draw(st.lists(st.integers(0, 11), min_size=1, max_size=2))
        if draw(st.booleans()):
            letters = [TOKEN_BYTES[i].decode() for i in range(12)]
            options["stop_strings"] = [
                "".join(draw(st.lists(st.sampled_from(letters), min_size=2, max_size=4)))
            ]
        options["sampling"] = {
            "temperature": draw(st.sampled_from([0.0, 0.0, 0.7, 2.0])),
            "top_k": draw(st.sampled_from([0, 5])),
            "top_p": draw(st.sampled_from([1.0, 0.8])),
            "repetition_penalty": draw(st.sampled_from([1.0, 1.1])),
            "presence_penalty": draw(st.sampled_from([0.0, 0.5])),
            "frequency_penalty": draw(st.sampled_from([0.0, 0.2])),
            "logprobs": draw(st.sampled_from([-1, 0, 2])),
            "seed": draw(st.integers(0, 5)),
        }
        requests.append((Prompt(*parts), options, draw(st.sampled_from([0, 1, 3, LIMIT]))))
    return requests


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    calls(),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([2.0, 9.0]),
    st.booleans(),
)
def test_any_call_equals_the_plain_loop(tmp_path_factory, requests, chunk, rows, strength, apart):
    """Rows of different acceptance, refilled and moved; tokens, texts, stops, log-probabilities, calls."""

    def answers(drafting):
        toy = habit_toy(
            tmp_path_factory.getbasetemp(),
            rows=rows,
            prefill_chunk=chunk,
            strength=strength,
            capacity=130,
            answers_apart=apart,
        )
        toy.executor.answer_bias = 1e-3 if apart else 0.0
        calls = {}

        def on_text(index, piece, token_id):
            calls.setdefault(index, []).append((piece, token_id))

        results = toy.generator.generate(
            [
                prompt.request(
                    **{**options, "sampling": _core.SamplingOptions(**options["sampling"])},
                    prompt_lookup=limit if drafting else 0,
                )
                for prompt, options, limit in requests
            ],
            on_text,
        )
        return results, calls

    plain, plain_calls = answers(False)
    drafted, drafted_calls = answers(True)
    assert [outcome(result) for result in drafted] == [outcome(result) for result in plain]
    assert drafted_calls == plain_calls
    for one, other, (_, _, limit) in zip(drafted, plain, requests, strict=True):
        np.testing.assert_allclose(
            [logprob or 0 for _, logprob, _ in one.logprobs],
            [logprob or 0 for _, logprob, _ in other.logprobs],
            atol=1e-5,
        )
        assert one.steps + one.accepted_tokens in (other.steps, other.steps + 1)
        assert one.accepted_tokens <= one.drafted_tokens
        assert limit > 0 or one.drafted_tokens == 0


def test_the_fuzz_above_has_drafts_that_come_true_and_drafts_that_do_not(toy):
    results = [toy.generate(prompt, max_new_tokens=100, prompt_lookup=6) for prompt in PROMPTS.values()]
    assert all(0 < r.accepted_tokens < r.drafted_tokens for r in results)


def test_sampled_answers_are_drafted_and_stay_the_same(toy):
    options = {"sampling": _core.SamplingOptions(temperature=1.0, top_k=20, seed=3), "max_new_tokens": 120}
    plain = toy.generate(PASSAGE, **options)
    drafted = toy.generate(PASSAGE, **options, prompt_lookup=8)
    assert drafted.token_ids == plain.token_ids
    assert drafted.accepted_tokens > 10


# --- the cache -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
def test_the_cache_holds_what_the_plain_loop_leaves(tmp_path, apart):
    plain, drafted = (habit_toy(tmp_path, answers_apart=apart) for _ in range(2))
    batch = [PASSAGE, PICTURE]
    expected = plain.generate(*batch, max_new_tokens=30)
    results = drafted.generate(*batch, max_new_tokens=30, prompt_lookup=5)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    for row in range(2):
        length = plain.cache.length(row)
        assert drafted.cache.length(row) == length
        for layer in range(2):
            for tensor in ("keys", "values"):
                ours, theirs = (getattr(t.cache, tensor)(layer)[row, :, :length] for t in (drafted, plain))
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
    later = [PASSAGE + Prompt([*results[0].token_ids, 1, 2]), PICTURE + Prompt([*results[1].token_ids, 1, 2])]
    for prompt in later:
        assert drafted.cached_prefix(prompt) == plain.cached_prefix(prompt)
    again = drafted.generate(later[0], prompt_lookup=5)
    assert again.token_ids == reference_answer(drafted.model, later[0], 12)


@pytest.mark.parametrize("limit", [3, LIMIT])
def test_prompt_and_answer_may_fill_the_cache_exactly(tmp_path, limit):
    toy = habit_toy(tmp_path, capacity=60)  # the toy's engine asserts that no step goes beyond
    result = toy.generate(PASSAGE, max_new_tokens=36, prompt_lookup=limit)
    assert result.finish_reason == "length"
    assert result.token_ids == reference_answer(toy.model, PASSAGE, 36)
    assert toy.cache.length(0) == 59


def test_drafts_are_an_answers_own_tokens(toy):
    kinds = []
    toy.executor.before_run = lambda step: kinds.append((step.prompt, step.tokens))
    toy.generate(PASSAGE, max_new_tokens=40, prompt_lookup=8)
    assert all(tokens == 1 or not prompt for prompt, tokens in kinds[4:])
    assert any(tokens > 1 for _, tokens in kinds[4:])


# --- what is drafted -------------------------------------------------------------------------------------


def first_draft(tmp_path, ids, limit, answer):
    """The first draft behind prompt `ids` when the model's first token is `answer`."""
    toy = habit_toy(tmp_path)
    toy.model.next[ids[-1]] = -50
    toy.model.next[ids[-1], answer] = 50
    seen = drafts(toy, lambda: toy.generate(Prompt(ids), max_new_tokens=LIMIT + 2, prompt_lookup=limit))
    return next((draft for draft, position in seen if position == len(ids)), None)


@pytest.mark.parametrize(
    ("ids", "answer", "limit", "expected"),
    [
        # The token that ends the prompt has a habit that sets the first answer token; the draft follows it.
        ([20, 21, 22, 23, 24, 40, 20], 21, 9, [22, 23]),  # two tokens agree: two are drafted
        ([20, 21, 22, 23, 24, 40, 20], 21, 1, [22]),
        ([20, 21, 22, 23, 24, 25, 40, 20, 21], 22, 9, [23, 24, 25]),  # three agree
        ([20, 21, 30, 41, 20, 21, 31, 42, 20], 21, 9, [31, 42]),  # of equals, the latest
        (
            [40, 20, 21, 30, 31, 20, 21, 32, 33, 40, 20],
            21,
            9,
            [30, 31, 20],
        ),  # the longer one before the latest
        ([50, 51, 50, 51, 50], 51, 9, [50, 51, 50, 51]),  # over its own end: a repetition goes on
        ([20, 21, 22, 23, 40], 21, 9, None),  # one token is not enough
        ([60, 61, 62], 70, 9, None),
    ],
)
def test_what_followed_the_longest_agreement_is_drafted(tmp_path, ids, answer, limit, expected):
    assert first_draft(tmp_path, ids, limit, answer) == expected


def test_a_copied_passage_is_soon_drafted_in_full_length(tmp_path):
    toy = habit_toy(tmp_path)
    passage = list(range(20, 80))
    for here, there in itertools.pairwise(passage):
        toy.model.next[here] = -50
        toy.model.next[here, there] = 50
    seen = drafts(toy, lambda: toy.generate(Prompt([*passage, 20]), max_new_tokens=58, prompt_lookup=16))
    assert [len(draft) for draft, _ in seen][:4] == [2, 5, 11, 16]


def test_pictures_are_not_drafted(tmp_path):
    toy = habit_toy(tmp_path)
    prompt = Prompt([40, 41], (IMAGE_PAD, (1, 4, 4), 1), [43, 40])
    toy.model.next[40] = -50
    toy.model.next[40, 41] = 50
    seen = drafts(toy, lambda: toy.generate(prompt, max_new_tokens=12, prompt_lookup=8))
    assert all(IMAGE_PAD not in draft for draft, _ in seen)
    assert all(position > len(prompt.ids) for _, position in seen)  # nothing else followed 40, 41


def test_in_a_batch_a_draft_must_be_worth_a_step_of_its_own(tmp_path):
    toy = habit_toy(tmp_path, rows=3)
    shapes = []
    toy.executor.before_run = lambda step: step.prompt or shapes.append((step.rows, step.tokens))
    toy.generate(PASSAGE, TEXT, PICTURE, max_new_tokens=40, prompt_lookup=8)
    assert {rows for rows, tokens in shapes if tokens > 1} == {1}
    first_single = next(i for i, (rows, tokens) in enumerate(shapes) if tokens == 1 and rows < 3)
    lengths = [tokens - 1 for _, tokens in shapes[:first_single] if tokens > 1]
    assert lengths and min(lengths) >= 3


def test_requests_of_a_batch_draft_only_where_asked(toy):
    requests = [PASSAGE.request(max_new_tokens=40, prompt_lookup=limit) for limit in (0, 8)]
    plain, drafting = toy.generator.generate(requests)
    assert plain.token_ids == drafting.token_ids
    assert (plain.drafted_tokens, plain.accepted_tokens, plain.steps) == (0, 0, 39)
    assert drafting.accepted_tokens > 0


# --- ends and failures within a draft --------------------------------------------------------------------


@pytest.fixture
def copying(tmp_path):
    """A model that copies the prompt's 40 tokens, whose drafts all come true, and its plain answer."""
    toy = habit_toy(tmp_path)
    for here in range(20, 59):
        toy.model.next[here] = -50
        toy.model.next[here, here + 1] = 50
    prompt = Prompt([*range(20, 60), 20, 21, 22])
    return toy, prompt, toy.generate(prompt, max_new_tokens=30).token_ids


@pytest.mark.parametrize("at", range(2, 20))
def test_a_stop_token_inside_a_draft_ends_the_answer_there(copying, at):
    toy, prompt, expected = copying
    result = toy.generate(prompt, max_new_tokens=30, prompt_lookup=8, stop_ids=[expected[at]])
    assert (result.token_ids, result.finish_reason) == (expected[: at + 1], "stop")
    assert toy.cache.length(0) == len(prompt.ids) + at


@pytest.mark.parametrize("at", range(2, 20))
def test_the_callback_ends_the_answer_inside_a_draft(copying, at):
    toy, prompt, expected = copying
    calls = []

    def on_text(index, piece, token_id):
        calls.append(token_id)
        return len(calls) == at

    result = toy.generate(prompt, max_new_tokens=30, prompt_lookup=8, on_text=on_text)
    assert (result.token_ids, result.finish_reason) == (expected[:at], "cancelled")
    assert calls == expected[:at]
    assert toy.cache.length(0) == len(prompt.ids) + at - 1


@pytest.mark.parametrize("at", [1, 4, 7, 12])
def test_a_cancel_takes_no_more_of_a_draft(copying, at):
    toy, prompt, expected = copying
    cancel, calls = _core.CancelToken(), []

    def on_text(index, piece, token_id):
        calls.append(token_id)
        if len(calls) == at:
            cancel.cancel()

    result = toy.generate(prompt, max_new_tokens=30, prompt_lookup=8, on_text=on_text, cancel=cancel)
    assert (result.token_ids, result.finish_reason) == (expected[:at], "cancelled")
    again = toy.generate(prompt + Prompt(expected[:at]), max_new_tokens=5, prompt_lookup=8)
    assert again.cached_tokens == len(prompt.ids) + at - 1
    assert again.token_ids == expected[at : at + 5]


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("run", range(7, 13))
def test_an_engine_failure_in_a_draft_leaves_the_generator_right(copying, run):
    toy, prompt, expected = copying
    toy.executor.shapes.clear()

    def fail(step):
        if len(toy.executor.shapes) == run:
            for cache in (toy.cache.keys(0), toy.cache.values(1)):
                cache[step.first_row, :, step.past_length[0] :] = np.nan
            raise BrokenError

    toy.cache.truncate(0, 0)
    toy.executor.before_run = fail
    with pytest.raises(BrokenError):
        toy.generate(prompt, max_new_tokens=30, prompt_lookup=4)
    toy.executor.before_run = None
    assert toy.generate(prompt, max_new_tokens=30, prompt_lookup=4).token_ids == expected


@pytest.mark.parametrize("call", range(1, 9))
def test_a_callback_failure_in_a_draft_leaves_the_generator_right(copying, call):
    toy, prompt, expected = copying
    calls = []

    def on_text(index, piece, token_id):
        calls.append(token_id)
        if len(calls) == call:
            raise BrokenError

    with pytest.raises(BrokenError):
        toy.generate(prompt, max_new_tokens=30, prompt_lookup=8, on_text=on_text)
    for later in (prompt, prompt + Prompt(expected[:12])):
        assert toy.generate(later, max_new_tokens=12).token_ids == reference_answer(toy.model, later, 12)


def spoil(toy, number):
    """NaN logits from position `number` on."""

    def run(embeds, cos, sin, past, keys, values, honest=toy.model.run):
        logits = honest(embeds, cos, sin, past, keys, values)
        logits[max(0, number - past) :] = np.nan
        return logits

    toy.model.run = run


def test_nan_behind_the_last_token_taken_is_nobodys_business(copying):
    toy, prompt, expected = copying
    toy.generate(prompt, max_new_tokens=1)
    spoil(toy, len(prompt.ids) + 4)
    result = toy.generate(prompt, max_new_tokens=30, prompt_lookup=16, stop_ids=[expected[4]])
    assert result.token_ids == expected[:5]


def test_nan_in_a_draft_is_an_error_at_its_step_and_does_not_outlive_it(copying):
    toy, prompt, expected = copying
    toy.generate(prompt, max_new_tokens=1)
    honest = toy.model.run
    spoil(toy, len(prompt.ids) + 4)
    with pytest.raises(Qwen2VLError, match="NaN logits at step 5"):
        toy.generate(prompt, max_new_tokens=30, prompt_lookup=16)
    assert toy.cache.length(0) == 0
    assert not toy.cache.keys(0)[0, :, : len(prompt.ids) + 5].any()
    toy.model.run = honest
    assert toy.generate(prompt, max_new_tokens=30, prompt_lookup=16).token_ids == expected


# --- refusals, memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [-1, LIMIT + 1, 2**40])
def test_a_limit_out_of_range_is_refused_before_anything_runs(toy, limit):
    with pytest.raises(InputError, match=f"prompt_lookup={limit}"):
        toy.generate(TEXT, prompt_lookup=limit)
    assert toy.executor.shapes == []


def test_step_buffers_never_move_and_hold_the_longest_draft(copying):
    toy, *_ = copying
    addresses, tokens = set(), []

    def remember(step):
        tokens.append(step.tokens)
        assert step.logits.shape == (step.rows, step.tokens if not step.prompt else 1, VOCAB)
        assert step.logit_rows.shape == step.logits.shape[:2]
        names = ("inputs_embeds", "cos", "sin", "past_length", "logit_rows", "logits")
        addresses.add(tuple(getattr(step, name).ctypes.data for name in names))

    toy.executor.before_run = remember
    long = Prompt([*range(20, 60)] * 2)  # agrees with itself for more than the longest draft
    toy.model.next[59] = -50
    toy.model.next[59, 20] = 50
    toy.generate(long, max_new_tokens=60, prompt_lookup=LIMIT)
    assert max(tokens) == LIMIT + 1
    assert len(addresses) == 1


class HeapState(ctypes.Structure):
    """glibc's struct mallinfo2."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    _fields_ = tuple((name, ctypes.c_size_t) for name in (*NAMES, "keepcost"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc's allocator")
@pytest.mark.parametrize("limit", [0, 8])
def test_a_step_keeps_no_memory(copying, limit):
    """Between two tokens memory may be borrowed, but what is in use stays the same."""
    toy, prompt, _ = copying
    state = ctypes.CDLL(None).mallinfo2
    state.restype = HeapState
    in_use = []

    def on_text(index, piece, token_id):
        heap = state()
        in_use.append(heap.uordblks + heap.hblkhd)

    for _ in range(3):  # what the first calls set up stays
        in_use.clear()
        toy.generate(prompt, max_new_tokens=150, prompt_lookup=limit, on_text=on_text)
    assert len(in_use) == 150
    # The test's own lists grow by some bytes a step; a row of the toy's logits is 384.
    assert np.median(in_use[100:]) - np.median(in_use[20:70]) < 80 * 200
