"""Tokenizers of pieces of words, trained here; and the one of models that have none."""

from __future__ import annotations

import json
import sys

import pytest

from aigc_fast.errors import UserError
from aigc_fast.models import BPETokenizer, IdTokenizer, tokenizer_from

TEXTS = ["The cat sat on the mat. The dog sat on the log.\n" * 5, "Ein Bär, 熊 🐻 und 12 Hunde.\n" * 3]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXTS, 320)


@pytest.mark.parametrize(
    "text", [*TEXTS, "", " ", "a\0b\r\n\t", "Zebra 🦓 ñandú 𝄞\u200d", "é" * 40, "\ufffd", "\ufffd a"]
)
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.encode_array(text).tolist() == tokens
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode([tokenizer.boundary, *tokens, tokenizer.boundary]) == text
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token) for token in [*tokens, *tokenizer.encode(".")]]
    assert "".join(pieces) == f"{text}."
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_stream_shows_text_as_soon_as_it_is_whole(tokenizer):
    decoder = tokenizer.decoder()
    assert [decoder.push(token) for token in tokenizer.encode("The cat")] == ["The", " cat"]
    tokens = tokenizer.encode("🦓")
    assert [decoder.push(token) for token in tokens] == [*[""] * (len(tokens) - 1), "🦓"]
    # Bytes that are no character don't hold the text back for ever.
    assert "".join(decoder.push(token) for token in [tokens[0]] * 6).count("\ufffd") >= 2


def test_frequent_pieces_are_single_tokens(tokenizer):
    assert 257 < tokenizer.vocab_size <= 320
    assert len(tokenizer.encode(" sat")) == 1
    assert tokenizer.boundary == tokenizer.start == 0
    assert tokenizer.text_of(0) == "<|endoftext|>"
    assert tokenizer.encode("a<|endoftext|>b")[1] == 0
    assert BPETokenizer.train(TEXTS, 320) == tokenizer


def test_configs_make_equal_ones(tokenizer):
    for one in (tokenizer, IdTokenizer(9, 1, 0)):
        again = tokenizer_from(json.loads(json.dumps(one.config())))
        assert again == one
        assert (again.vocab_size, again.boundary, again.start) == (one.vocab_size, one.boundary, one.start)


def test_numbers_stand_for_themselves():
    tokenizer = IdTokenizer(99, 1)
    assert tokenizer.encode("5 98\n7") == [5, 98, 7]
    assert tokenizer.decode([5, 1, 98]) == "5 98"
    for text in ("x", "99", "-1", "1.5", "²"):
        with pytest.raises(UserError, match="the model has no tokenizer"):
            tokenizer.encode(text)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "subwords", "content": "{}", "boundary": 0}, "not that of a tokenizer.json"),
        ({"kind": "subwords", "content": 5, "boundary": 0}, "content is int"),
        ({"kind": "subwords", "boundary": 0}, "content"),
        ({"kind": "ids", "size": 4, "boundary": 4}, "boundary=4: expected 0 to 3"),
        ({"kind": "ids", "size": 0, "boundary": 0}, "size=0"),
        ({"kind": "ids", "size": "4", "boundary": 0}, "size is str"),
    ],
)
def test_bad_configs_are_told(config, words):
    with pytest.raises(UserError, match=words):
        tokenizer_from(config)


def test_more_tokens_than_the_text_has_are_asked_for():
    most = BPETokenizer.train(TEXTS, 10**5)
    assert BPETokenizer.train(iter(TEXTS), 10**15) == BPETokenizer.train(TEXTS, 2**63 - 1) == most
    assert most.vocab_size < 10**4


def test_bad_training_is_told(tokenizer):
    with pytest.raises(UserError, match="single string"):
        BPETokenizer.train("text")
    with pytest.raises(UserError, match="vocab_size=256: expected at least 257"):
        BPETokenizer.train(TEXTS, 256)
    with pytest.raises(UserError, match=f"vocab_size={2**70}: expected at most"):
        BPETokenizer.train(TEXTS, 2**70)
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match="token 320: expected 0 to"):
        tokenizer.decode([320])
    with pytest.raises(ValueError, match="boundary=320"):
        BPETokenizer(tokenizer.content, 320)


def test_without_the_library_there_is_one_line(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'aigc-fast\[text\]'"):
        tokenizer_from(tokenizer.config())
