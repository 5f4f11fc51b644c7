"""Figures of answers against counting by hand and sacrebleu, with the package and without."""

from __future__ import annotations

import builtins
import json
import math

import pytest
import torch

from aigc_fast.errors import UserError
from aigc_fast.metrics import evaluate_pairs
from aigc_fast.models import CharTokenizer, Seq2SeqTransformer

HELD_OUT = [("a", "the cat sat on the mat"), ("b", "a dog ran"), ("c", "a dog ran"), ("d", "nothing at all")]
TRAINING = [("x", "a dog ran"), ("y", "something else")]
ANSWERS = ["the cat sat on a mat", "a dog ran", "something else", "something else"]


def test_shares_are_counted():
    report = evaluate_pairs(ANSWERS, HELD_OUT, TRAINING)
    assert (report.count, report.training_count) == (4, 2)
    assert report.exact == 1 / 4
    assert (report.distinct, report.distinct_of_held_out) == (3 / 4, 3 / 4)
    assert (report.known, report.known_of_held_out) == (3 / 4, 2 / 4)
    assert report.perplexity is None
    json.dumps(report.as_dict())


def test_scores_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    report, targets = evaluate_pairs(ANSWERS, HELD_OUT, TRAINING), [target for _, target in HELD_OUT]
    assert report.chrf == sacrebleu.corpus_chrf(ANSWERS, [targets]).score
    assert report.bleu == sacrebleu.corpus_bleu(ANSWERS, [targets]).score
    others = [*targets[2:], *targets[:2]]
    assert report.chrf_of_others == sacrebleu.corpus_chrf(others, [targets]).score
    assert report.bleu_of_others == sacrebleu.corpus_bleu(others, [targets]).score
    perfect = evaluate_pairs(targets, HELD_OUT, TRAINING)
    assert (perfect.exact, perfect.remarks) == (1, ())
    assert perfect.chrf == pytest.approx(100)


def test_without_the_package_the_other_figures_are_there(monkeypatch):
    known = builtins.__import__

    def refused(name, *args, **options):
        if name == "sacrebleu":
            raise ImportError(name)
        return known(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refused)
    report = evaluate_pairs(ANSWERS, HELD_OUT, TRAINING)
    assert (report.exact, report.chrf, report.bleu, report.bleu_of_others) == (1 / 4, None, None, None)
    assert report.remarks == ("For chrF and BLEU: pip install 'aigc-fast[metrics]'",)


def test_perplexity_is_of_each_token():
    torch.manual_seed(0)
    tokenizer = CharTokenizer.of([text for pair in HELD_OUT for text in pair])
    model = Seq2SeqTransformer(tokenizer=tokenizer, d_model=8, nhead=2, dim_feedforward=8, max_positions=30)
    report = evaluate_pairs(ANSWERS, HELD_OUT, TRAINING, model)
    tokens = sum(len(target) + 1 for _, target in HELD_OUT)
    total = sum(model.score(*pair) for pair in HELD_OUT)
    assert report.perplexity == pytest.approx(math.exp(-total / tokens), rel=1e-5)


@pytest.mark.parametrize("wrong", [None, "ab", 3, {"a": "b"}, [1, 2, 3, 4], [None] * 4, [math.nan] * 4])
def test_what_are_no_answers_is_named(wrong):
    with pytest.raises(TypeError, match=r"^answers: expected a sequence of strings, got"):
        evaluate_pairs(wrong, HELD_OUT, TRAINING)


@pytest.mark.parametrize("wrong", [None, "abcd", 3, [("a",)] * 4, [("a", "b", "c")] * 4, [("a", None)] * 4, ["ab"] * 4])
def test_what_are_no_pairs_is_named(wrong):
    model = Seq2SeqTransformer(tokenizer=CharTokenizer.of(["ab"]), d_model=8, nhead=2, dim_feedforward=8)
    for call in (
        lambda: evaluate_pairs(ANSWERS, wrong, TRAINING),
        lambda: evaluate_pairs(ANSWERS, HELD_OUT, wrong),
        lambda: model.score_all(wrong),
    ):
        with pytest.raises(
            TypeError, match=r"^(held_out|training|pairs): expected a sequence of pairs of strings, got"
        ):
            call()


def test_empty_answers_score_nothing():
    report = evaluate_pairs([""] * 4, HELD_OUT, [])
    assert (report.exact, report.known, report.chrf, report.bleu) == (0, 0, 0, 0)


def test_answers_are_as_many_as_pairs():
    with pytest.raises(UserError, match="answers: got 1, expected one for each of 4 pairs"):
        evaluate_pairs(ANSWERS[:1], HELD_OUT, TRAINING)
    with pytest.raises(UserError, match="at least one"):
        evaluate_pairs([], [], TRAINING)
