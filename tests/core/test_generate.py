"""The generation loop against a plain recomputation: chunks, batches, stops, streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, PromptTooLongError
from tests.support.toy_decoder import (
    END,
    HIDDEN,
    IMAGE_PAD,
    SPECIAL,
    TOKEN_BYTES,
    VIDEO_PAD,
    VOCAB,
    Prompt,
    Toy,
    reference_answer,
)

TEXT = Prompt([1, 2, 3, 4, 5])
PICTURE = Prompt([7, 8], (IMAGE_PAD, (1, 4, 6), 1), [9, 10, 11])
PICTURES = Prompt(
    [7], (IMAGE_PAD, (1, 2, 6), 1), [8, 92], (IMAGE_PAD, (1, 8, 2), 2), [9], (IMAGE_PAD, (1, 4, 4), 3), [10]
)
LONG_VIDEO = Prompt([30, 31], (VIDEO_PAD, (9, 4, 4), 4), [32, 33])
MIXED = Prompt(
    [1], (VIDEO_PAD, (3, 2, 2), 5), [92, 2], (IMAGE_PAD, (1, 4, 4), 6), (VIDEO_PAD, (2, 2, 4), 7), [3] * 5
)
PROMPTS = {"text": TEXT, "picture": PICTURE, "pictures": PICTURES, "long video": LONG_VIDEO, "mixed": MIXED}


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16, 1000])
def test_the_answer_does_not_depend_on_the_chunk_size(tmp_path, prompt, chunk):
    toy = Toy(tmp_path, prefill_chunk=chunk)
    result = toy.generate(prompt)
    assert result.token_ids == reference_answer(toy.model, prompt, 12)
    assert result.prompt_tokens == len(prompt.ids)
    assert result.cached_tokens == 0
    assert result.finish_reason == "length"
    assert result.steps == 11
    prefill = [tokens for _, _, tokens in toy.executor.shapes[:-11]]
    assert sum(prefill) == len(prompt.ids)
    assert max(prefill) <= chunk
    assert set(toy.executor.shapes[-11:]) == {(0, 1, 1)}


@st.composite
def prompts(draw):
    parts = []
    for number in range(draw(st.integers(1, 4))):
        parts.append(draw(st.lists(st.integers(0, 89), min_size=1, max_size=5)))
        if draw(st.booleans()):
            h, w = draw(st.integers(1, 3)), draw(st.integers(1, 3))
            t = draw(st.sampled_from([0, 1, 2, 7]))
            parts.append((VIDEO_PAD if t else IMAGE_PAD, (t or 1, 2 * h, 2 * w), number))
    return Prompt(*parts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(prompts(), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 3), st.data())
def test_any_batch_equals_plain_recomputation(tmp_path_factory, batch, chunk, rows, data):
    """More requests than rows, answers of different length: rows are refilled and moved."""
    toy = Toy(tmp_path_factory.getbasetemp(), rows=rows, prefill_chunk=chunk, capacity=400)
    counts = [data.draw(st.integers(1, 10)) for _ in batch]
    results = toy.generator.generate(
        [prompt.request(max_new_tokens=count) for prompt, count in zip(batch, counts, strict=True)]
    )
    for result, prompt, count in zip(results, batch, counts, strict=True):
        assert result.token_ids == reference_answer(toy.model, prompt, count)
        assert result.prompt_tokens == len(prompt.ids)
        assert result.steps == count - 1


def test_decode_steps_are_batched_over_the_first_rows(toy):
    requests = [p.request(max_new_tokens=n) for p, n in ((TEXT, 4), (PICTURE, 8), (MIXED, 6))]
    toy.generator.generate(requests)
    decode = [shape for shape in toy.executor.shapes if shape[2] == 1 and shape[1] > 0][-7:]
    assert decode == [(0, 3, 1)] * 3 + [(0, 2, 1)] * 2 + [(0, 1, 1)] * 2


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_step_says_whether_its_tokens_are_the_prompts(tmp_path, chunk):
    """By what the tokens are, never by how many: a chunk of one is still the prompt's."""
    toy = Toy(tmp_path, prefill_chunk=chunk)
    counts = {True: 0, False: 0}

    def count(step):
        counts[step.prompt] += step.rows * step.tokens

    toy.executor.before_run = count
    toy.generate(TEXT, PICTURE, max_new_tokens=6)
    assert counts == {True: len(TEXT.ids) + len(PICTURE.ids), False: 2 * 5}


def test_no_requests(toy):
    assert toy.generator.generate([]) == []


def test_step_buffers_never_move(toy):
    addresses = set()

    def remember(step):
        names = ("inputs_embeds", "cos", "sin", "past_length", "logit_rows", "logits")
        arrays = [getattr(step, name) for name in names]
        addresses.add(tuple(array.ctypes.data for array in arrays))
        assert [array.dtype for array in arrays] == [np.float32] * 3 + [np.int64] * 2 + [np.float32]
        b, t = step.rows, step.tokens
        assert [a.shape for a in arrays] == [
            (b, t, HIDDEN),
            (b, t, 4),
            (b, t, 4),
            (b,),
            (b, 1),
            (b, 1, VOCAB),
        ]
        assert all(array.ctypes.data % 64 == 0 for array in arrays)

    toy.executor.before_run = remember
    toy.generate(TEXT, PICTURE)
    toy.generate(MIXED)
    assert len(addresses) == 1


def test_choosing_the_first_token_counts_as_prefill(tmp_path):
    """A device has only queued the prompt's work until then. Here the choice takes far longer than the rest:
    nearly all of a million tokens are kept."""
    vocab = 1 << 20
    noise = np.random.default_rng(0).standard_normal(vocab, np.float32)

    class Noise(_core.Executor):
        def run(self, step):
            step.logits[...] = noise

    path = tmp_path / "embedding.bin"
    path.write_bytes(bytes(2 * 8 * vocab))
    toy, table = Toy(tmp_path), _core.EmbeddingTable(str(path), vocab, 8, "float16")
    decoder = _core.HostDecoder(Noise(), _core.KVCache(1, 1, 1, 8, 8), table, toy.rope, 7)
    settings = toy.settings | {"hidden_size": 8, "vocab_size": vocab}
    generator = _core.Generator(decoder, _core.TokenText([b"a"]), **settings)
    sampling = _core.SamplingOptions(temperature=100.0, top_p=0.999, seed=1)
    (result,) = generator.generate([_core.Request([1, 2], sampling=sampling, max_new_tokens=1)])
    assert len(result.token_ids) == 1
    assert result.decode_seconds < 0.1 * result.prefill_seconds


def text_of(token_ids):
    kept = [i for i in token_ids if i not in SPECIAL]
    return b"".join(TOKEN_BYTES[i] for i in kept).decode("utf-8", "replace")


def test_stop_id_ends_the_answer_and_stays_out_of_the_text(toy):
    full = toy.generate(TEXT)
    stop = full.token_ids[5]
    at = full.token_ids.index(stop)
    result = toy.generate(TEXT, stop_ids=[VOCAB + 7, stop])
    assert result.token_ids == full.token_ids[: at + 1]
    assert result.text == text_of(full.token_ids[:at])
    assert (result.finish_reason, result.stop_string) == ("stop", None)


def test_stop_string_is_cut_from_the_text(toy):
    full = toy.generate(TEXT)
    middle = len(full.text) // 2
    stop = full.text[middle : middle + 3]
    result = toy.generate(TEXT, stop_strings=["never there", stop])
    assert result.text == full.text[: full.text.index(stop)]
    assert (result.finish_reason, result.stop_string) == ("stop", stop)
    assert result.token_ids == full.token_ids[: len(result.token_ids)]
    assert text_of(result.token_ids).startswith(result.text + stop)


def test_streamed_pieces_join_to_the_text(toy):
    batch = [TEXT, PICTURE, PICTURES, LONG_VIDEO, MIXED]
    pieces = {i: [] for i in range(len(batch))}
    tokens = {i: [] for i in range(len(batch))}

    def on_text(index, piece, token_id):
        pieces[index].append(piece)
        tokens[index].append(token_id)

    results = toy.generate(*batch, on_text=on_text, max_new_tokens=40)
    for index, result in enumerate(results):
        assert "".join(pieces[index]) == result.text
        assert tokens[index] == result.token_ids
        assert result.text == text_of(result.token_ids)
    assert any(END in r.token_ids or any(i in SPECIAL for i in r.token_ids) for r in results)


def test_the_callback_ends_only_its_own_answer(toy):
    seen = []

    def on_text(index, piece, token_id):
        seen.append(index)
        return index == 0 and seen.count(0) == 3

    first, second = toy.generate(TEXT, PICTURE, on_text=on_text)
    assert (first.finish_reason, len(first.token_ids)) == ("cancelled", 3)
    assert first.token_ids == reference_answer(toy.model, TEXT, 3)
    assert seen.count(0) == 3
    assert second.token_ids == reference_answer(toy.model, PICTURE, 12)


def test_the_callback_cannot_end_what_has_ended(toy):
    def always(*_):
        return True

    assert toy.generate(TEXT, max_new_tokens=1, on_text=always).finish_reason == "length"
    stop = toy.generate(TEXT, max_new_tokens=1).token_ids
    assert toy.generate(TEXT, stop_ids=stop, on_text=always).finish_reason == "stop"


def test_seed_gives_the_same_answer_alone_and_in_any_row(toy):
    options = {"sampling": _core.SamplingOptions(temperature=1.0, seed=42)}
    alone = toy.generate(TEXT, **options).token_ids
    assert toy.generate(TEXT, **options).token_ids == alone
    batch = [PICTURE, TEXT, MIXED, TEXT]
    results = toy.generate(*batch, **options)
    assert results[1].token_ids == alone
    assert results[3].token_ids == alone
    assert results[0].token_ids == toy.generate(PICTURE, **options).token_ids
    other = toy.generate(TEXT, sampling=_core.SamplingOptions(temperature=1.0, seed=43))
    assert other.token_ids != alone


def test_logprobs_are_reported_for_every_token(toy):
    result = toy.generate(PICTURE, sampling=_core.SamplingOptions(logprobs=3))
    assert [token_id for token_id, _, _ in result.logprobs] == result.token_ids
    for token_id, logprob, alternatives in result.logprobs:
        assert len(alternatives) == 3
        assert alternatives[0] == (token_id, logprob)  # greedy
        assert logprob <= 0
    assert toy.generate(PICTURE).logprobs == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Prompt().request(), InputError, "empty"),
        (
            lambda: Prompt([1] * 190).request(),
            PromptTooLongError,
            r"prompt of 190 tokens \+ 12 new > capacity 200",
        ),
        (lambda: TEXT.request(max_new_tokens=2**62), PromptTooLongError, "capacity 200"),
        (lambda: TEXT.request(max_new_tokens=0), InputError, "max_new_tokens must be at least 1, got 0"),
        (lambda: TEXT.request(max_new_tokens=-1), InputError, "max_new_tokens"),
        (lambda: Prompt([1, VOCAB]).request(), InputError, "token id 96"),
        (lambda: _core.Request([-5], max_new_tokens=1), InputError, "token id -5"),
        (lambda: PICTURE.request(embeddings=[]), InputError, "0 visual embeddings for 1 grids"),
        (lambda: PICTURE.request(embeddings=[None]), InputError, "has no embeddings"),
        (
            lambda: PICTURE.request(embeddings=[np.zeros((5, HIDDEN))]),
            InputError,
            r"shape \[5, 24\], expected \[6, 24\]",
        ),
        (lambda: PICTURE.request(embeddings=[np.zeros((6, 3))]), InputError, r"\[6, 3\]"),
        (lambda: PICTURE.request(embeddings=[np.zeros(6)]), InputError, "2 dimensions"),
        (
            lambda: _core.Request(
                [IMAGE_PAD], grids=[(1, 2, 2)], embeddings=[np.zeros((1, HIDDEN))], max_new_tokens=1
            ),
            InputError,
            "content id",
        ),
        (
            lambda: _core.Request([1, 2], content_ids=[1], max_new_tokens=1),
            InputError,
            "content id for every token",
        ),
        (lambda: TEXT.request(stop_strings=[""]), InputError, "empty"),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(toy, make, error, message):
    with pytest.raises(error, match=message):
        toy.generator.generate([TEXT.request(), make()])
    assert toy.executor.shapes == []
    assert toy.generate(TEXT).token_ids == reference_answer(toy.model, TEXT, 12)


def test_prompt_and_answer_may_fill_the_cache_exactly(tmp_path):
    toy = Toy(tmp_path, capacity=20)
    assert toy.generate(Prompt([1, 2, 3] * 4), max_new_tokens=8).finish_reason == "length"


def test_a_generator_refuses_parts_that_do_not_fit(toy):
    def build(rope=toy.rope, prefill_chunk=7, **changes):
        decoder = _core.HostDecoder(toy.executor, toy.cache, toy.embedding, rope, prefill_chunk)
        return _core.Generator(decoder, toy.token_text, **toy.settings | changes)

    build()
    for change, named in (
        ({"hidden_size": 8}, "embedding table's width is 24"),
        ({"vocab_size": 5}, "number of rows is 96"),
        ({"rope": _core.RopeTable(16, 100.0, (2, 3, 3))}, "head_dim is 8, the decoder's is 16"),
        ({"prefill_chunk": 0}, "prefill_chunk must be at least 1, got 0"),
        ({"least_chunk": 0}, "least_chunk must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=named):
            build(**change)
