"""Streaming text: byte-level tokens, UTF-8 across tokens, stop strings across tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError

BYTES = _core.TokenText([bytes([value]) for value in range(256)])


def stream(pieces, stop_strings=()):
    """Feeds byte strings as single tokens; returns the emitted pieces and the stream."""
    text = _core.TokenText(list(pieces) or [b""])
    out = _core.TextStream(text, list(stop_strings))
    return [*(out.push(i) for i in range(len(pieces))), out.finish()], out


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=5), max_size=12))
@example([b"\xf0\x9f", b"\x98", b"\x80!"])
@example([b"\xf0\x9f\x98"])
@example([b"\xe4\xbd", b"A"])
@example([b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80"])
@example([b"\xf0\x9f\xf0\x9f\x98\x80\xff\xfe\x80"])
def test_pieces_join_to_what_python_decodes(pieces):
    emitted, _ = stream(pieces)
    assert "".join(emitted) == b"".join(pieces).decode("utf-8", "replace")


def test_every_pair_and_boundary_triple_of_bytes():
    leads = [
        0x7F,
        0x80,
        0xBF,
        0xC0,
        0xC1,
        0xC2,
        0xDF,
        0xE0,
        0xE1,
        0xED,
        0xEE,
        0xEF,
        0xF0,
        0xF1,
        0xF3,
        0xF4,
        0xF5,
        0xFF,
    ]
    follows = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC2, 0xF0]
    sequences = [*itertools.product(range(256), range(256)), *itertools.product(leads, follows, follows)]
    sequences += itertools.product(leads, follows, follows, follows)
    for sequence in sequences:
        assert BYTES.decode(sequence) == bytes(sequence).decode("utf-8", "replace")


def test_characters_come_out_whole_and_at_once():
    emitted, _ = stream([b"a", b"\xf0\x9f", b"\x98", b"\x80b", b"\xc3"])
    assert emitted == ["a", "", "", "😀b", "", "�"]


# --- against the tokenizer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE tokenizer of all bytes and some merges, with special and plain added tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("Ã", "©")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(
        [AddedToken("<|im_end|>", special=True), AddedToken("<|box_start|>", special=True)]
    )
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    return tokenizer


def token_text_of(tokenizer):
    unicode_to_byte = {}
    shift = 0
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    for value in range(256):
        unicode_to_byte[chr(value if value in printable else 256 + shift)] = value
        shift += value not in printable
    added = tokenizer.get_added_tokens_decoder()
    token_bytes = []
    for token_id in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(token_id)
        token_bytes.append(
            added[token_id].content.encode()
            if token_id in added
            else bytes(unicode_to_byte[c] for c in token)
        )
    return _core.TokenText(token_bytes, [i for i, token in added.items() if token.special])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_decode_equals_the_tokenizers(tokenizer, data):
    text = token_text_of(tokenizer)
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
    assert text.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_encoded_text_comes_back(tokenizer):
    text = "the théâtre 😀 日本語\n\t<tool_call>"
    ids = tokenizer.encode(text + "<|im_end|>").ids
    assert token_text_of(tokenizer).decode(ids) == text


def test_ids_beyond_the_tokenizers_are_empty():
    """The model's vocabulary is padded with ids that mean nothing."""
    assert BYTES.decode([65, 256, 2**31 - 1, -1, 66]) == "AB"
    assert BYTES.bytes(999) == b""


def test_special_ids_must_be_tokens():
    with pytest.raises(InputError, match="special token id 3"):
        _core.TokenText([b"a"], [3])


# --- stop strings ----------------------------------------------------------------------------------------


def expected_cut(text, stop_strings):
    """The stop string that is complete first, the longest of those; the text before it."""
    found = [
        (end, -len(stop), stop)
        for stop in stop_strings
        for end in range(len(stop), len(text) + 1)
        if text[:end].endswith(stop)
    ]
    if not found:
        return text, None
    end, _, stop = min(found)
    return text[: end - len(stop)], stop


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.lists(st.text(alphabet="abé", max_size=4), max_size=10),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example(["aab", "aac"], ["aabaac", "baab"])
@example(["ab", "ab", "c"], ["abc", "bab"])
def test_stop_strings_cut_wherever_the_borders_fall(pieces, stop_strings):
    emitted, out = stream([piece.encode() for piece in pieces], stop_strings)
    text, stop = expected_cut("".join(pieces), stop_strings)
    assert ("".join(emitted), out.stop_string) == (text, stop)


def test_a_stop_string_over_three_tokens_one_of_them_half_a_character():
    emitted, out = stream([b"x</", b"\xc3", b"\xa9nd", b">y"], ["</énd>"])
    assert emitted == ["x", "", "", "", ""]
    assert out.stop_string == "</énd>"


def test_text_that_could_start_a_stop_string_is_held_back_no_longer_than_needed():
    emitted, out = stream([b"a<", b"<", b"b<", b"/"], ["</"])
    assert emitted == ["a", "<", "<b", "", ""]
    assert out.stop_string == "</"
    emitted, out = stream([b"a<"], ["</"])
    assert emitted == ["a", "<"]
    assert out.stop_string is None


def test_nothing_comes_after_a_stop_string():
    out = _core.TextStream(BYTES, ["b"])
    assert [out.push(i) for i in b"abab"] == ["a", "", "", ""]
    assert out.finish() == ""


def test_a_special_token_does_not_part_the_bytes_around_it():
    text = _core.TokenText([b"a", b"<|box_start|>", b"\xc3", b"\xa9"], [1])
    assert text.decode(np.array([0, 2, 1, 3])) == "aé"


def test_empty_stop_strings_are_refused():
    with pytest.raises(InputError, match="empty"):
        _core.TextStream(BYTES, [""])
