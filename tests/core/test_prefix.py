"""What a cache row holds is reused by the next prompt, and the answer equals a full re-prefill's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError
from tests.support.toy_decoder import IMAGE_PAD, VIDEO_PAD, Prompt, Toy, reference_answer


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def picture(seed, h=4, w=4):
    return Prompt((IMAGE_PAD, (1, h, w), seed))


def check(toy, prompt, cached, count=10):
    """The answer equals full recomputation, and exactly `cached` tokens came from the cache."""
    assert toy.cached_prefix(prompt) == cached
    result = toy.generate(prompt, max_new_tokens=count)
    assert result.cached_tokens == cached
    assert result.token_ids == reference_answer(toy.model, prompt, count)
    return result


def test_a_chat_of_several_turns(toy):
    history = Prompt([1, 2]) + picture(1) + Prompt([3, 4])
    answer = check(toy, history, 0).token_ids
    # The last token of an answer was chosen, but never run.
    held = len(history.ids) + len(answer) - 1
    history += Prompt([*answer, 40, 41])
    answer = check(toy, history, held).token_ids
    held = len(history.ids) + len(answer) - 1
    # A picture in a later turn takes its three-axis positions after all that came before.
    history += Prompt([*answer, 42]) + picture(2, 6, 2) + Prompt([43])
    answer = check(toy, history, held).token_ids
    held = len(history.ids) + len(answer) - 1
    history += Prompt([*answer, 44]) + Prompt((VIDEO_PAD, (7, 2, 4), 3)) + Prompt([45, 46])
    check(toy, history, held)


def test_another_picture_with_the_same_tokens_is_not_taken_for_the_first(toy):
    start = Prompt([1, 2])
    check(toy, start + picture(1) + Prompt([3]), 0)
    check(toy, start + picture(2) + Prompt([3]), 2)


def test_the_same_tokens_on_another_grid_are_not_taken_for_the_first(toy):
    """2 x 8 and 8 x 2 merged tokens: the same ids; even with equal keys the positions tell them apart."""
    wide, tall = (Prompt([1]) + picture(1, h, w) + Prompt([3]) for h, w in ((4, 16), (16, 4)))
    tall.content_ids = wide.content_ids
    check(toy, wide, 0)
    check(toy, tall, 1)


def test_a_block_is_reused_whole_or_not_at_all(toy):
    start = Prompt([1, 2])
    # The same picture's first rows, as a caller's weak keys could claim.
    first, second = start + picture(1) + Prompt([3]), start + picture(1) + Prompt([3])
    second.content_ids[4] += 1  # the third token of the block differs
    check(toy, first, 0)
    check(toy, second, 2)


def test_a_prompt_that_ends_with_a_picture(toy):
    """At least one token has to be computed; when that is a pad, the whole picture is."""
    prompt = Prompt([1, 2]) + picture(1)
    check(toy, prompt, 0)
    check(toy, prompt, 2)


def test_the_same_prompt_again_computes_its_last_token(toy):
    prompt = Prompt([1, 2]) + picture(1) + Prompt([3, 4])
    check(toy, prompt, 0)
    check(toy, prompt, len(prompt.ids) - 1)


@pytest.mark.parametrize("length", range(1, 40))
def test_few_tokens_of_a_prompt_never_come_alone(tmp_path, length):
    """An engine may add up a few tokens' numbers in another order: repeats and tails of chunks avoid that."""
    toy = Toy(tmp_path, prefill_chunk=9, least_chunk=5)
    prompt = Prompt([token % 50 + 1 for token in range(length)])
    check(toy, prompt, 0, count=1)
    check(toy, prompt, max(0, length - 5), count=1)
    chunks = [tokens for _row, _rows, tokens in toy.executor.shapes]
    assert min(chunks) >= min(5, length)
    assert max(chunks) <= 9


def test_a_truncated_history(toy):
    prompt = Prompt([1, 2]) + picture(1) + Prompt([3, 4, 5, 6])
    check(toy, prompt, 0)
    check(toy, Prompt([1, 2]) + picture(1) + Prompt([3, 9]), 7)
    check(toy, Prompt([1, 2]), 1)
    check(toy, Prompt([8, 2]) + picture(1), 0)


def test_truncation_by_the_caller(toy):
    prompt = Prompt([1, 2]) + picture(1) + Prompt([3, 4, 5, 6])
    check(toy, prompt, 0)
    toy.cache.truncate(0, 4)  # inside the picture
    check(toy, prompt, 2)


def test_cached_pictures_need_no_embeddings(toy):
    first = Prompt([1, 2]) + picture(1) + Prompt([3, 4])
    answer = check(toy, first, 0).token_ids
    second = first + Prompt(answer) + picture(2) + Prompt([5])
    toy.executor.shapes.clear()
    result = toy.generate(second, embeddings=[None, second.visuals[1]])
    assert result.token_ids == reference_answer(toy.model, second, 12)
    toy.cache.truncate(0, 1)
    for embeddings in ([None, second.visuals[1]], [second.visuals[0], None]):
        with pytest.raises(InputError, match="has no embeddings"):
            toy.generate(second, embeddings=embeddings)


def test_two_generators_share_a_cache_without_confusion(toy):
    """Identities live in the cache: the second generator knows what the first left there."""
    prompt = Prompt([1, 2]) + picture(1) + Prompt([3, 4])
    answer = check(toy, prompt, 0).token_ids
    toy.generator = toy.generator_over(toy.executor)
    check(toy, prompt + Prompt([*answer, 40, 41]), len(prompt.ids) + len(answer) - 1)
    check(toy, Prompt([1, 2]) + picture(2) + Prompt([3, 4]), 2)


def test_a_batch_shares_its_common_beginning(toy):
    start = Prompt([1, 2, 3]) + picture(1)
    prompts = [start + Prompt([4, 5]), start + Prompt([6]), start + Prompt([7, 8, 9])]
    results = toy.generate(*prompts, max_new_tokens=10)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == reference_answer(toy.model, prompt, 10)
    assert [result.cached_tokens for result in results] == [0, 7, 7]


@pytest.mark.parametrize("apart", [True, False])
def test_answers_of_another_graph_are_not_taken_for_a_prompts(tmp_path, apart):
    """Where the engine computes answers in another way, a later turn that repeats one computes it again."""
    start, question = Prompt([1, 2]) + picture(1) + Prompt([3]), Prompt([5, 6])

    def toy(apart):
        made = Toy(tmp_path, answers_apart=apart)
        made.executor.answer_bias = 0.5
        return made

    continued = toy(apart)
    answer = continued.generate(start).token_ids
    second = start + Prompt(answer) + question
    result = continued.generate(second)
    same = result.token_ids == toy(True).generate(second).token_ids
    assert (same, result.cached_tokens) == ((True, len(start.ids)) if apart else (False, len(second.ids) - 3))
    third = second + Prompt([7])
    assert continued.generate(third).cached_tokens == len(second.ids)


_parts = st.sampled_from(
    [[1], [2, 3], [4, 5, 6], (IMAGE_PAD, (1, 2, 4), 1), (IMAGE_PAD, (1, 4, 2), 1), (IMAGE_PAD, (1, 2, 4), 2),
     (VIDEO_PAD, (5, 2, 2), 3)]
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(_parts, min_size=1, max_size=5), min_size=2, max_size=5),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_any_history_of_prompts_equals_full_prefills(tmp_path_factory, history, chunk, rows):
    """Prompts from few parts, so that they often begin alike; the answers stay right whatever is cached."""
    toy = Toy(tmp_path_factory.getbasetemp(), prefill_chunk=chunk, rows=rows)
    for parts in history:
        prompt = Prompt(*parts)
        assert toy.generate(prompt, max_new_tokens=4).token_ids == reference_answer(toy.model, prompt, 4)


def test_keys_may_be_left_out_for_text(toy):
    first = toy.generator.generate([_core.Request([1, 2, 3, 4], max_new_tokens=3)])[0]
    second = toy.generator.generate(
        [_core.Request([1, 2, 3, 9], content_ids=np.array([1, 2, 3, 9]), max_new_tokens=3)]
    )[0]
    assert (first.cached_tokens, second.cached_tokens) == (0, 3)
