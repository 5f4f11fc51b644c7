"""Figures of text against counting by hand, and against slow searches."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_fast.data import load_text
from aigc_fast.metrics import copied_share, distinct_n, evaluate_text, longest_copied, perplexity
from aigc_fast.models import ByteTokenizer, CharTokenizer, NGram

TEXTS = st.lists(st.text("ab\n", max_size=40), min_size=1, max_size=4).filter(any)


def searched(texts, training):
    """The length of the longest passage that both have."""
    return max(
        (
            end - start
            for text in texts
            for start in range(len(text))
            for end in range(start, len(text) + 1)
            if any(text[start:end] in known for known in training)
        ),
        default=0,
    )


def passages(texts, n):
    return [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]


@given(TEXTS, TEXTS)
def test_the_longest_copied_passage_is_the_longest(texts, training):
    found = longest_copied(texts, training)
    length = len(found.text)
    assert length == searched(texts, training)
    for part, (index, start) in ((texts, found.made), (training, found.known)):
        assert part[index][start : start + length] == found.text


@given(TEXTS, TEXTS, st.integers(1, 20))
def test_the_share_of_copied_passages(texts, training, n):
    made, known = passages(texts, n), set(passages(training, n))
    expected = sum(one in known for one in made) / len(made) if made else 0
    assert copied_share(texts, training, n) == pytest.approx(expected)


def test_long_copies_are_found():
    training = load_text().training
    passage = max(training, key=len)[1000:9000]
    found = longest_copied(["nothing", f"ÿÿ{passage}ÿÿ"], training)
    assert found.text == passage
    assert found.made == (1, 2)
    assert training[found.known[0]][found.known[1] :].startswith(passage)
    assert copied_share([passage], training) == 1
    assert copied_share([passage, "ÿ" * len(passage)], training) == pytest.approx(0.5)


def test_passages_do_not_reach_across_texts():
    assert longest_copied(["ab", "cd"], ["abcd"]).text == "ab"
    assert longest_copied(["abcd"], ["xab", "cdx"]).text == "ab"
    assert longest_copied(["b"], ["a"]) == ("", (0, 0), (0, 0))
    assert copied_share(["abcd"], ["ab", "cd"], 3) == 0


def test_distinct_words():
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a b\nc"], 3) == 1
    assert distinct_n(["a b"], 3) == 0
    assert distinct_n([" \n"], 1) == 0


def test_perplexity_of_a_model_that_knows_nothing():
    texts = ["één", "twee", ""]
    of_bytes = perplexity(NGram(tokenizer=ByteTokenizer()), texts)
    assert (of_bytes.characters, of_bytes.bytes) == (7, 9)
    assert of_bytes.nats == pytest.approx(12 * math.log(257))
    assert of_bytes.bits_per_byte == pytest.approx(12 * math.log2(257) / 9)
    assert of_bytes.bits_per_character == pytest.approx(12 * math.log2(257) / 7)
    assert of_bytes.per_byte == pytest.approx(2**of_bytes.bits_per_byte)
    assert of_bytes.per_character == pytest.approx(2**of_bytes.bits_per_character)
    of_characters = perplexity(NGram(tokenizer=CharTokenizer("a", unknown=True)), texts)
    assert of_characters.nats == pytest.approx(10 * math.log(3))


def test_a_report_tells_copies_from_new_text():
    corpus = load_text()
    model = NGram(tokenizer=corpus.tokenizer, order=4).fit(corpus.training)
    copied = evaluate_text([corpus.training[0][:500]], corpus.training, corpus.held_out, model)
    assert (copied.count, copied.training_count, copied.characters) == (1, len(corpus), 500)
    assert copied.copied == 1
    assert (copied.longest_copied, copied.passage) == (500, corpus.training[0][:500])
    assert copied.copied_of_held_out < 1
    assert copied.longest_copied_of_held_out < 500
    assert copied.distinct_1 == distinct_n([corpus.training[0][:500]], 1)
    assert copied.distinct_2_of_held_out == distinct_n([corpus.held_out[0][:500]], 2)
    foreseen = perplexity(model, corpus.held_out)
    assert copied.bits_per_character == foreseen.bits_per_character
    assert copied.perplexity_per_byte == foreseen.per_byte
    assert json.loads(json.dumps(copied.as_dict()))["longest_copied"] == 500
    without = evaluate_text(["new"], corpus.training, corpus.held_out)
    assert (without.bits_per_character, without.perplexity_per_character) == (None, None)
    assert (without.copied, without.longest_copied) == (0, 3)


@pytest.mark.parametrize("wrong", ["text", None, 5, [1], b"text"])
def test_what_is_no_text_is_named(wrong):
    model = NGram(tokenizer=ByteTokenizer())
    for call in (
        lambda: distinct_n(wrong, 1),
        lambda: copied_share(wrong, ["a"]),
        lambda: copied_share(["a"], wrong),
        lambda: longest_copied(["a"], wrong),
        lambda: perplexity(model, wrong),
        lambda: evaluate_text(wrong, ["a"], ["a"]),
        lambda: evaluate_text(["a"], ["a"], wrong),
    ):
        with pytest.raises(TypeError, match=r"^(texts|training|generated|held_out): expected a sequence of strings"):
            call()


def test_empty_texts_and_sizes_are_named():
    for empty in ([], [""]):
        with pytest.raises(ValueError, match=f"training: expected text, got {len(empty)} text"):
            longest_copied(["a"], empty)
        with pytest.raises(ValueError, match="texts: expected text"):
            distinct_n(empty, 2)
    for call in (distinct_n, lambda texts, n: copied_share(texts, texts, n)):
        with pytest.raises(ValueError, match="n=0: expected at least 1"):
            call(["a"], 0)
        with pytest.raises(TypeError, match="n is float"):
            call(["a"], 1.5)
