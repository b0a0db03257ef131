"""prompt_lookup on the tiny checkpoint in float32: the same answers in fewer passes, and figures of it."""

from __future__ import annotations

import json

import pytest

from qwen2vl_rt import InputError
from qwen2vl_rt.cli import main
from qwen2vl_rt.cli.run import describe_timings

LISTING = "Describe every object in the picture."
TEXT = (
    "red block left, blue ball right, green cone left, red block left, blue ball right, green cone left, red"
)


def both(session, prompt, **keywords):
    plain = session.generate(prompt, **keywords)
    drafted = session.generate(prompt, prompt_lookup=8, **keywords)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.finish_reason == plain.finish_reason
    assert plain.usage.drafted_tokens == plain.usage.accepted_tokens == 0
    return drafted


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"repetition_penalty": 1.2, "presence_penalty": 0.3},
        {"temperature": 0.8, "top_p": 0.9, "seed": 5},
        {"stop": ["block"]},
    ],
)
def test_answers_stay_the_same(session, desk, keywords):
    for prompt, images in ((LISTING, [desk]), (TEXT, []), ("Where is the red block?", [desk, desk])):
        drafted = both(session, prompt, images=images, max_new_tokens=120, **keywords)
        assert drafted.usage.accepted_tokens <= drafted.usage.drafted_tokens


def test_an_answer_that_repeats_itself_takes_fewer_passes(session):
    """Past its stop token the tiny checkpoint goes round in circles, which lookups foresee."""
    answer = both(session, TEXT, max_new_tokens=300, ignore_eos=True)
    assert answer.usage.accepted_tokens > 20
    assert f"{answer.usage.accepted_tokens} rightly" in describe_timings(answer)


def test_log_probabilities_are_reported_for_drafted_tokens(session):
    plain, drafted = (
        session.generate(TEXT, max_new_tokens=80, ignore_eos=True, logprobs=2, prompt_lookup=limit)
        for limit in (0, 8)
    )
    assert drafted.usage.accepted_tokens > 0
    assert [entry.token_id for entry in drafted.logprobs] == list(drafted.token_ids)
    for one, other in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_batch_and_a_stream_draft_too(session, desk):
    prompts = [{"prompt": LISTING, "images": [desk]}, TEXT, "Hello."]
    keywords = {"max_new_tokens": 100, "ignore_eos": True}
    plain = session.generate_batch(prompts, **keywords)
    drafted = session.generate_batch(prompts, prompt_lookup=8, **keywords)
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]
    with session.stream(TEXT, prompt_lookup=8, **keywords) as stream:
        assert "".join(stream) == plain[1].text
    assert stream.answer.usage.accepted_tokens > 0


def test_a_bad_limit_is_the_projects_own_error(session):
    with pytest.raises(InputError, match="prompt_lookup is 33"):
        session.generate(TEXT, prompt_lookup=33)


def test_the_command_line_takes_the_limit(bundle, capsys):
    assert main(["run", str(bundle), TEXT, "--prompt-lookup", "8", "--max-new-tokens", "9", "--json"]) == 0
    assert "drafted_tokens" in json.loads(capsys.readouterr().out)["usage"]
    assert main(["run", str(bundle), TEXT, "--prompt-lookup", "-1"]) == 1
    assert "prompt_lookup is -1" in capsys.readouterr().err
