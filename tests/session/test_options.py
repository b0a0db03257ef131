"""Generation options are checked before anything runs."""

import pytest

from qwen2vl_rt.errors import InputError
from qwen2vl_rt.options import GenerationOptions, split_options


def test_one_stop_string_may_stand_alone():
    assert GenerationOptions(stop="END").stop == ("END",)
    assert GenerationOptions(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize(
    "bad",
    [{"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"stop": [""]}, {"stop": [3]}]
    + [{"prompt_lookup": value} for value in (-1, 33, 2.0, True, "8")],
)
def test_a_bad_option_is_named_with_its_value(bad):
    (name, _value), *_ = bad.items()
    with pytest.raises(InputError, match=name):
        GenerationOptions(**bad)


def test_split_keeps_prompt_keywords_apart():
    options, rest = split_options({"temperature": 0.5, "images": ["a.png"], "seed": 3})
    assert (options.temperature, options.seed) == (0.5, 3)
    assert rest == {"images": ["a.png"]}
