"""Token ids, and the bytes behind them, against the tokenizers library."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2vl_rt.errors import BundleError, InputError
from qwen2vl_rt.processing.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def real(real_tokenizer_folder):
    return Tokenizer(real_tokenizer_folder / "tokenizer.json")


@pytest.fixture(scope="module")
def real_bytes(real):
    return real.token_bytes()


def check_bytes_decode_like_the_library(tokenizer, table, seed, count=3000):
    generator = np.random.default_rng(seed)
    used = [id_ for id_, content in enumerate(table) if content]
    for length in generator.integers(1, 40, count // 40):
        ids = generator.choice(used, length).tolist()
        joined = b"".join(table[id_] for id_ in ids).decode("utf-8", "replace")
        assert joined == tokenizer.decode(ids, skip_special_tokens=False)
        plain = [id_ for id_ in ids if id_ not in tokenizer.special_ids]
        joined = b"".join(table[id_] for id_ in plain).decode("utf-8", "replace")
        assert joined == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(12))
def test_bytes_of_a_real_vocabulary(real, real_bytes, seed):
    check_bytes_decode_like_the_library(real, real_bytes, seed)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_of_a_small_vocabulary(processor, seed):
    check_bytes_decode_like_the_library(processor.tokenizer, processor.tokenizer.token_bytes(), seed)


def test_unused_ids_have_no_bytes(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.size == 270
    table = tokenizer.token_bytes(300)
    assert len(table) == 300
    assert all(table[:270])
    assert not any(table[270:])
    with pytest.raises(BundleError, match="outside a vocabulary of 269"):
        tokenizer.token_bytes(269)


def test_added_tokens_outside_the_byte_alphabet(tmp_path, folder):
    config = json.loads((folder / "tokenizer.json").read_text())
    for index, content in enumerate(["\u4f60\u597d", "\u00e9t\u00e9"]):
        token = dict(config["added_tokens"][-1], id=270 + index, content=content, special=False)
        config["added_tokens"].append(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    check_bytes_decode_like_the_library(tokenizer, tokenizer.token_bytes(), 0)
    assert tokenizer.token_bytes()[270].decode() == "\u4f60\u597d"
    assert 270 not in tokenizer.special_ids


def test_special_tokens(processor):
    tokenizer = processor.tokenizer
    assert len(tokenizer.special_ids) == 14
    assert "<|im_start|>" in tokenizer.reserved
    assert "<|image_pad|>" in tokenizer.reserved
    assert "<|box_start|>" not in tokenizer.reserved
    (im_end,) = tokenizer.encode("<|im_end|>")
    assert tokenizer.token_of(im_end) == "<|im_end|>"
    assert tokenizer.token_of(10**6) is None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=50))
def test_text_survives(processor, text):
    ids = processor.tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert processor.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_real_cases(real, real_tokenizer_folder):
    """The text and id pairs that came with the vocabulary."""
    marker = "\n__ggml_vocab_test__\n"
    texts = (real_tokenizer_folder / "cases.inp").read_text(encoding="utf-8").split(marker)
    lines = (real_tokenizer_folder / "cases.out").read_text().splitlines()
    assert len(lines) > 40
    for text, line in zip(texts, lines, strict=False):  # the last text is followed by a marker too
        assert real.encode(text).tolist() == [int(id_) for id_ in line.split()]


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0"}', "\x00"])
def test_damaged_files(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BundleError, match="no usable tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(BundleError, match="no usable tokenizer"):
        Tokenizer(tmp_path / "missing.json")


def test_a_path_beyond_utf8(tmp_path, folder):
    place = tmp_path / os.fsdecode(b"lat\xe9.json")
    place.write_bytes((folder / "tokenizer.json").read_bytes())
    assert Tokenizer(place).encode("a").size == 1


def test_refuses_text_that_is_none(processor):
    with pytest.raises(InputError, match="cannot be tokenized"):
        processor.tokenizer.encode("\ud800")
