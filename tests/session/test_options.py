"""Generation options are checked before anything runs."""

import numpy as np
import pytest

from qwen2vl_rt import BundleError, InputError, Session
from qwen2vl_rt.options import GenerationOptions, split_options


def test_one_stop_string_may_stand_alone():
    assert GenerationOptions(stop="END").stop == ("END",)
    assert GenerationOptions(stop=["a", "b"]).stop == ("a", "b")


NO_NUMBERS = ["hot", None, [1.0], 1j, True]
NO_COUNTS = ["2", 1.5, 2.0, -1, True, [1], 10**30]


@pytest.mark.parametrize(
    "bad",
    [{"max_new_tokens": value} for value in (0, None, *NO_COUNTS[:-1])]
    + [{name: value} for name in ("temperature", "top_p", "min_p") for value in (-0.1, *NO_NUMBERS)]
    + [{"temperature": float("nan")}, {"temperature": 10**400}, {"top_p": 1.1}, {"min_p": 1.1}]
    + [{name: value} for name in ("top_k", "seed") for value in (None, *NO_COUNTS)]
    + [{"seed": 2**64}]
    + [{"repetition_penalty": value} for value in (0, -1.0, "x", True, [])]
    + [{name: value} for name in ("presence_penalty", "frequency_penalty") for value in NO_NUMBERS]
    + [{"presence_penalty": float("inf")}]
    + [{"logprobs": value} for value in NO_COUNTS]
    + [{"stop": value} for value in ("", [""], [3], [b"x"], None, 5, ["\ud800"], {"a": 1})]
    + [{"ignore_eos": value} for value in ("no", None, 1, np.array([1, 2]))]
    + [{"prompt_lookup": value} for value in (-1, 33, 2.0, True, "8")],
    ids=str,
)
def test_a_bad_option_is_named(bad):
    (name,) = bad
    with pytest.raises(InputError, match=name):
        GenerationOptions(**bad)


def test_numpys_numbers_are_numbers():
    options = GenerationOptions(
        max_new_tokens=np.int64(4), temperature=np.float32(0.5), seed=np.uint64(2**64 - 1), top_p=1
    )
    assert (options.max_new_tokens, options.temperature, options.top_p) == (4, 0.5, 1.0)
    assert (options.seed, type(options.seed)) == (2**64 - 1, int)
    assert GenerationOptions(ignore_eos=np.True_).ignore_eos is True


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", value) for value in ("2", None, -1, 10**9, 1.5, True)]
    + [("memory_limit", value) for value in ("6G", 0, -1, 1.5)]
    + [(name, value) for name in ("max_length", "max_pixels") for value in (0, "8", 1.5)]
    + [(name, value) for name in ("max_batch", "prefill_chunk") for value in (0, "8", 1.5, None)],
)
def test_a_bad_number_of_a_session_is_named(bundle, name, value):
    with pytest.raises(InputError, match=name):
        Session(bundle, **{name: value})


def test_a_sessions_numbers_may_be_numpys(bundle):
    with Session(bundle, max_length=np.int64(64), threads=np.int32(1)) as session:
        assert session.plan().limits.max_length == 64


def test_no_path_is_no_bundle():
    with pytest.raises(BundleError, match="None"):
        Session(None)


@pytest.mark.parametrize(
    ("typo", "meant"), [("max_tokens", "max_new_tokens"), ("temprature", "temperature"), ("image", "images")]
)
def test_the_nearest_option_is_named(session, typo, meant):
    for call in (session.generate, session.stream):
        with pytest.raises(InputError, match=f"'{typo}' is no option: do you mean {meant}"):
            call("Hello.", **{typo: 3})


@pytest.mark.parametrize("cancel", ["x", object(), True])
def test_a_cancel_that_is_no_token(session, cancel):
    for call, prompt in ((session.generate, "a"), (session.stream, "a"), (session.generate_batch, ["a"])):
        with pytest.raises(InputError, match="CancelToken"):
            call(prompt, cancel=cancel)


@pytest.mark.parametrize("prompts", ["hello", None, 5, {"prompt": "x"}, b"hello"])
def test_prompts_that_are_no_list(session, prompts):
    with pytest.raises(InputError, match="prompts is"):
        session.generate_batch(prompts)


def test_split_keeps_prompt_keywords_apart():
    options, rest = split_options({"temperature": 0.5, "images": ["a.png"], "seed": 3})
    assert (options.temperature, options.seed) == (0.5, 3)
    assert rest == {"images": ["a.png"]}
