"""What all models of text share: how text is drawn, where it ends, and what is refused."""

from __future__ import annotations

import math
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from torch import nn

from aigc_fast.errors import UserError
from aigc_fast.models import ByteTokenizer, CharTokenizer, TextModel
from aigc_fast.models.text import Sampling
from aigc_fast.models.text.base import before_stop


class Parrot(TextModel):
    """Says what it was told, over and over, `step` tokens at a time."""

    name = "parrot"

    def __init__(self, *, tokenizer, words, step=1, num_classes=None):
        super().__init__(tokenizer=tokenizer, num_classes=num_classes, words=words, step=step)
        self.register_buffer("tokens", torch.tensor(words))
        self.step = step
        self.inner = nn.Dropout()

    def _draw(self, context, sampling, generator):
        assert context[0] == self.tokenizer.boundary
        tokens = cycle(self.tokens.tolist())
        while True:
            assert not self.inner.training
            assert not torch.is_grad_enabled()
            yield list(islice(tokens, self.step))

    def log_probabilities(self, tokens):
        self.check_tokens(tokens)
        return torch.full(tokens.shape, -math.log(self.tokenizer.vocab_size))


@pytest.fixture(params=[1, 2, 7])
def parrot(request):
    tokenizer = CharTokenizer("abc ", unknown=True)
    return Parrot(tokenizer=tokenizer, words=tokenizer.encode("abc "), step=request.param)


def test_text_is_as_long_as_asked(parrot):
    for length in (0, 1, 5, 9):
        assert parrot.generate("c", length=length) == "abc abc abc "[:length]


def test_a_stream_is_the_text(parrot):
    pieces = parrot.stream(length=9)
    assert iter(pieces) is pieces
    assert "".join(pieces) == "abc abc a"
    if parrot.step == 1:
        assert list(parrot.stream(length=3)) == ["a", "b", "c"]


def test_a_stream_leaves_modes_as_they_are(parrot):
    parrot.train()
    for _ in parrot.stream(length=5):
        assert parrot.inner.training
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("c", "ab"), ("c a", "abc"[:2]), (["x", " "], "abc"), ("a", ""), ("xyz", "abc abc ab"), ([], "abc abc ab")],
)
def test_text_ends_before_a_stop(parrot, stop, expected):
    assert parrot.generate(length=10, stop=stop) == expected


def test_what_may_begin_a_stop_waits():
    assert list(before_stop(iter("abab"), ["abx"])) == ["ab", "ab"]
    assert list(before_stop(iter("aab"), ["ab"])) == ["a"]
    assert list(before_stop(iter(["xab", "c", "y"]), ["abcd"])) == ["x", "abcy"]
    assert list(before_stop(iter(["one two"]), ["two", "ne"])) == ["o"]


def test_text_ends_with_its_document(parrot):
    tokenizer = parrot.tokenizer
    for step in (1, 5):
        ends = Parrot(tokenizer=tokenizer, words=[0, 1, tokenizer.boundary, 2], step=step)
        assert ends.generate(length=10) == "ab"


def test_bytes_are_told_as_characters():
    tokenizer = ByteTokenizer()
    parrot = Parrot(tokenizer=tokenizer, words=tokenizer.encode("né"))
    assert list(parrot.stream(length=5)) == ["n", "é", "n"]


def test_the_tokenizer_is_part_of_the_configuration(parrot):
    twin = Parrot(**parrot.config)
    assert twin.tokenizer == parrot.tokenizer
    assert twin.generate(length=4) == "abc "
    assert (parrot.device, parrot.num_classes) == (torch.device("cpu"), None)


def test_a_score_counts_the_end_and_unknown_characters(parrot):
    each = -math.log(6)
    assert parrot.score("ab") == pytest.approx(3 * each)
    assert parrot.score("aé", end=False) == pytest.approx(2 * each)
    assert parrot.score("", end=False) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"length": -1}, "length=-1: expected 0 or more tokens"),
        ({"length": 1.5}, "length=1.5"),
        ({"length": True}, "length=True"),
        ({"temperature": -0.1}, "temperature=-0.1: expected a number above 0, or 0 for greedy"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": "1"}, "temperature='1'"),
        ({"top_k": 0}, "top_k=0: expected 1 or more tokens"),
        ({"top_k": 2.0}, "top_k=2.0"),
        ({"top_p": 0}, "top_p=0: expected a number above 0, at most 1"),
        ({"top_p": 1.1}, r"top_p=1\.1"),
        ({"stop": ""}, "stop='': expected a string, or several, none of them empty"),
        ({"stop": ["a", 1]}, "stop="),
        ({"stop": 5}, "stop=5"),
        ({"prompt": "aéb"}, r"unknown 'é' \(U\+00E9\) in 1 place, first in line 1, column 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(parrot, settings, expected):
    for call in (parrot.stream, parrot.generate):
        with pytest.raises(UserError, match=expected):
            call(**{"length": 3, **settings})


def test_tokens_are_checked(parrot):
    for wrong in ([0], torch.zeros(2), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([1], dtype=torch.int32)):
        with pytest.raises(ValueError, match="tokens: expected an int64 tensor"):
            parrot.log_probabilities(wrong)
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match="tokens: expected 0 to 5"):
            parrot.log_probabilities(torch.tensor([0, wrong]))


def test_classes_and_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match="text has no classes"):
        Parrot(tokenizer=ByteTokenizer(), words=[1], num_classes=3)
    with pytest.raises(UserError, match="tokenizer='bytes'"):
        Parrot(tokenizer="bytes", words=[1])


LOGS = np.log([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, np.array([1, 16, 4, 9]) / 30),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 1e-9}, [0, 1, 0, 0]),
        ({"top_k": 2}, np.array([0, 4, 0, 3]) / 7),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, np.array([0, 4, 0, 3]) / 7),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.5}, np.array([0, 4, 0, 3]) / 7),
    ],
)
def test_what_is_drawn_of(settings, expected):
    sampling = Sampling(1, **settings)
    for logs in (LOGS, LOGS + 5):
        np.testing.assert_allclose(sampling.probabilities(logs), expected, atol=1e-12)
    uniform = np.random.default_rng(0).random(4000)
    share = np.bincount([sampling.choose(LOGS, one) for one in uniform], minlength=4) / 4000
    np.testing.assert_allclose(share, expected, atol=0.03)
    assert not share[np.equal(expected, 0)].any()


def test_what_must_not_be_drawn_is_not_and_the_first_of_equals_is():
    logs = np.array([-np.inf, 0.0, 0.0, -np.inf])
    assert Sampling(1, temperature=0).choose(logs, 0.99) == 1
    assert [Sampling(1).choose(logs, uniform) for uniform in (0.0, 0.49, 0.5, 1 - 2**-53)] == [1, 1, 2, 2]
