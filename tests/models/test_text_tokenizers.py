"""Tokenizers give the text back, know their own, and name what they do not know."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_fast.errors import UserError
from aigc_fast.models import ByteTokenizer, CharTokenizer, IdTokenizer, WordTokenizer, tokenizer_from

TEXTS = ["", "a", "hello\n", "Größe – 你好 🎈\0\t"]


@pytest.fixture(params=["characters", "bytes", "with unknown"])
def tokenizer(request):
    if request.param == "bytes":
        return ByteTokenizer()
    return CharTokenizer.of(TEXTS, unknown=request.param == "with unknown")


def streamed(tokenizer, tokens):
    decoder = tokenizer.decoder()
    return [decoder.push(token) for token in tokens]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size and token != tokenizer.boundary for token in tokens)
    assert tokenizer.decode(tokens) == text
    assert "".join(streamed(tokenizer, tokens)) == text


def test_a_boundary_has_no_text(tokenizer):
    a, boundary = tokenizer.encode("a"), tokenizer.boundary
    assert tokenizer.decode([boundary, *a, boundary, *a]) == "aa"
    assert streamed(tokenizer, [boundary, *a]) == ["", "a"]


def test_a_tokenizer_is_made_again_of_its_configuration(tokenizer):
    again = tokenizer_from(json.loads(json.dumps(tokenizer.config())))
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    assert again.encode(TEXTS[-1]) == tokenizer.encode(TEXTS[-1])
    assert tokenizer_from(tokenizer) is tokenizer
    assert tokenizer != CharTokenizer("a")
    assert repr(tokenizer) == f"{type(tokenizer).__name__} of {tokenizer.vocab_size} tokens"


def test_tokens_out_of_range_are_named(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"token {wrong}: expected 0 to {tokenizer.vocab_size - 1}"):
            tokenizer.decode([wrong])
        with pytest.raises(ValueError, match=rf"token {wrong}"):
            tokenizer.decoder().push(wrong)


def test_the_numbers_of_characters_and_bytes():
    characters = CharTokenizer.of(["cab", "b"])
    assert (characters.characters, characters.encode("abc"), characters.boundary) == ("abc", [0, 1, 2], 3)
    assert (characters.vocab_size, characters.unknown) == (4, None)
    assert CharTokenizer("ba").encode("ab") == [1, 0]
    open_alphabet = CharTokenizer("ab", unknown=True)
    assert (open_alphabet.boundary, open_alphabet.unknown, open_alphabet.vocab_size) == (2, 3, 4)
    units = ByteTokenizer()
    assert units.encode("aé") == [97, 0xC3, 0xA9]
    assert (units.vocab_size, units.boundary, units.unknown) == (257, 256, None)


@given(st.text())
def test_bytes_hold_any_text(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text == "".join(streamed(tokenizer, tokenizer.encode(text)))


def test_bytes_stream_whole_characters():
    tokenizer = ByteTokenizer()
    assert streamed(tokenizer, "é你".encode()) == ["", "é", "", "", "你"]
    assert streamed(tokenizer, b"\xc3a") == ["", "\ufffda"]
    assert tokenizer.decode(b"a\xc3") == "a\ufffd"


def test_unknown_characters_are_named_with_their_place():
    tokenizer = CharTokenizer("ab\n", unknown=True)
    expected = (
        "text: unknown 'é' (U+00E9), '\\x00' (U+0000) in 3 places, first in line 2, column 2: "
        "expected one of the 3 characters known"
    )
    with pytest.raises(UserError) as caught:
        tokenizer.encode("ab\naé\0é")
    assert str(caught.value) == expected
    assert tokenizer.encode("aé", strict=False) == [0, 4]
    assert tokenizer.decode([0, 4]) == "a\ufffd"
    with pytest.raises(UserError, match="unknown 'é'"):
        CharTokenizer("ab").encode("é", strict=False)
    with pytest.raises(UserError, match="expected one of the 0 characters known"):
        CharTokenizer("").encode("a")
    with pytest.raises(UserError, match=r"unknown '\\ud800' \(U\+D800\) in 1 place, .*, column 2: .*UTF-8"):
        ByteTokenizer().encode("a\ud800")


def test_many_unknown_characters_are_told_in_a_line():
    with pytest.raises(UserError, match=r"… \(26 in all\) in 26 places"):
        CharTokenizer("1").encode("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    "config",
    [
        None,
        "characters",
        {},
        {"kind": "words"},
        {"kind": ["bytes"]},
        {"kind": "bytes", "characters": "a"},
        {"kind": "characters"},
        {"kind": "characters", "characters": "aa"},
        {"kind": "characters", "characters": ["a", "b"]},
        {"kind": "characters", "characters": "ab", "unknown": 1},
    ],
)
def test_a_configuration_of_no_tokenizer_is_refused(config):
    with pytest.raises(UserError, match="tokenizer"):
        tokenizer_from(config)


class TestWords:
    tokenizer = WordTokenizer.of(["the cat\nsat", "\tthe mat\u00a0é  <s> <UNK>\r\n"], unknown=True)

    def test_they_stand_between_spaces_tabs_and_ends_of_lines(self):
        assert self.tokenizer.words == ("cat", "mat\u00a0é", "sat", "the")
        assert (self.tokenizer.vocab_size, self.tokenizer.boundary, self.tokenizer.unknown) == (6, 4, 5)
        assert self.tokenizer.encode("  the\tcat\r\nsat ") == [3, 0, 2]
        assert self.tokenizer.encode(" \n") == []

    def test_a_space_stands_between_two(self):
        assert self.tokenizer.decode([4, 3, 0, 4, 2, 5]) == "the cat sat \ufffd"
        for before, expected in (("", "the cat"), ("on", " the cat"), ("on ", "the cat"), ("on\n", "the cat")):
            decoder = self.tokenizer.decoder(before)
            assert "".join(decoder.push(token) for token in (4, 3, 0)) == expected
        decoder = IdTokenizer(9, 1).decoder("5")
        assert [decoder.push(token) for token in (6, 1, 7)] == [" 6", "", " 7"]
        for wrong in (-1, 6):
            with pytest.raises(ValueError, match=f"token {wrong}: expected 0 to 5"):
                self.tokenizer.decode([wrong])

    def test_a_configuration_makes_an_equal_one(self):
        again = tokenizer_from(json.loads(json.dumps(self.tokenizer.config())))
        assert again == self.tokenizer == WordTokenizer(list(self.tokenizer.words), unknown=True)
        assert again.words == self.tokenizer.words
        assert again != WordTokenizer(self.tokenizer.words)

    def test_unknown_ones_are_named(self):
        with pytest.raises(UserError, match=r"unknown 'dog', 'a' in 3 places: expected some of the 4 words known"):
            self.tokenizer.encode("the dog a dog")
        assert self.tokenizer.encode("the dog", strict=False) == [3, 5]
        with pytest.raises(UserError, match="unknown 'dog'"):
            WordTokenizer("the").encode("dog", strict=False)

    @pytest.mark.parametrize(
        ("words", "error", "message"),
        [
            ("a b a", ValueError, "expected each once"),
            (["a b"], ValueError, "words: 'a b': expected a word without spaces"),
            ([""], ValueError, "words: ''"),
            ("a </S>", ValueError, "words: '</S>'"),
            ([1], TypeError, "words is list"),
        ],
    )
    def test_what_is_no_vocabulary_is_refused(self, words, error, message):
        with pytest.raises(error, match=message):
            WordTokenizer(words)
