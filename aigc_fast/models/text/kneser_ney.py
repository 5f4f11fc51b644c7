"""Interpolated modified Kneser-Ney: from a corpus' n-grams to their probabilities and back-off weights."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MAX_ORDER = 100
"""Longer n-grams of a corpus are all copies of it, and each order costs memory and time."""
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Of n-grams that are counted once, twice and more often, where a corpus is too small to tell."""

log = logging.getLogger("aigc_fast")


class Tables(NamedTuple):
    """An n-gram model in back-off form, an array for each order.

    An n-gram is known by its place in its order's arrays; that of one token is the token.

    Attributes:
        keys: int64, of each order from 2 on, ascending: the place of the n-gram's first n - 1 tokens among the
            (n - 1)-grams, times the number of tokens, plus its last token.
        logs: float64, of each order from 1 on: log10 of the probability of the last token after the others. The
            boundary's is that of a document's end.
        backoffs: float64, of each order but the last: log10 of what is left after the n-gram for tokens with which it
            makes none of the next order. The boundary's is that of a document's beginning.
    """

    keys: list[np.ndarray]
    logs: list[np.ndarray]
    backoffs: list[np.ndarray]


class _Grams(NamedTuple):
    """The n-grams of one order.

    Attributes:
        keys: see `Tables`.
        counts: how often each occurs.
        ends: where each ends for the first time.
        begins: whether each begins a document.
        at: of each position in the corpus, the n-gram that ends there, or -1.
        before: of each position, the n-gram that ends there and can be followed by a token, or -1.
    """

    keys: np.ndarray
    counts: np.ndarray
    ends: np.ndarray
    begins: np.ndarray
    at: np.ndarray
    before: np.ndarray


def estimate(tokens: np.ndarray, order: int, vocab_size: int, boundary: int) -> Tables:
    """Counts the n-grams of documents and smooths their probabilities.

    Args:
        tokens: int64 (T,), the documents, with a boundary before, between and after them.
        order: of the longest n-grams.
        vocab_size: how many tokens there are; those that do not occur share what is left of the unigrams.
        boundary: the token before and after documents; no n-gram reaches across.

    Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998; Heafield,
    Pouzyrevsky, Clark and Koehn, "Scalable modified Kneser-Ney language model estimation", 2013.
    """
    names = np.arange(vocab_size)
    grams = [_Grams(names, np.bincount(tokens), names, names == boundary, tokens, tokens)]
    while len(grams) < order:
        grams.append(_longer(grams[-1], tokens, vocab_size, boundary))
    counts = _counts(grams, tokens, vocab_size)
    taken, total = _taken(counts[0], 1), counts[0].sum()
    probabilities = [(counts[0] - taken) / total + taken.sum() / total / vocab_size]
    backoffs = []
    for n in range(2, order + 1):
        context, taken = grams[n - 1].keys // vocab_size, _taken(counts[n - 1], n)
        size = len(probabilities[-1])
        total = np.bincount(context, counts[n - 1], size)
        left = np.divide(np.bincount(context, taken, size), total, out=np.ones(size), where=total > 0)
        lower = probabilities[-1][grams[n - 2].at[grams[n - 1].ends]]
        probabilities.append((counts[n - 1] - taken) / total[context] + left[context] * lower)
        backoffs.append(np.log10(left))
    return Tables([level.keys for level in grams[1:]], [np.log10(found) for found in probabilities], backoffs)


def _longer(shorter: _Grams, tokens: np.ndarray, vocab_size: int, boundary: int) -> _Grams:
    """The n-grams that are one token longer."""
    places = np.flatnonzero(shorter.before[:-1] >= 0) + 1
    occurring = shorter.before[places - 1] * vocab_size + tokens[places]
    keys, first, which, counts = np.unique(occurring, return_index=True, return_inverse=True, return_counts=True)
    at = np.full(len(tokens), -1)
    at[places] = which
    begins = shorter.begins[keys // vocab_size]
    return _Grams(keys, counts, places[first], begins, at, np.where(tokens == boundary, -1, at))


def _counts(grams: list[_Grams], tokens: np.ndarray, vocab_size: int) -> list[np.ndarray]:
    """Of the longest n-grams, and those that begin a document, how often they occur; of others, after how many tokens.

    A boundary alone is a document's end here: its beginning is never what comes next.
    """
    if len(grams) == 1:
        return [np.bincount(tokens[1:], minlength=vocab_size)]
    counts = [np.bincount(tokens[grams[1].ends], minlength=vocab_size)]
    for shorter, longer in pairwise(grams[1:]):
        after = np.bincount(shorter.at[longer.ends], minlength=len(shorter.keys))
        counts.append(np.where(shorter.begins, shorter.counts, after))
    return [*counts, grams[-1].counts]


def _taken(counts: np.ndarray, n: int) -> np.ndarray:
    """What each n-gram's count is discounted by."""
    return np.array([0.0, *discounts(counts, n)])[np.minimum(counts, 3)]


def discounts(counts: np.ndarray, n: int) -> tuple[float, ...]:
    """What is taken off counts of 1, 2, and 3 or more: Chen and Goodman's equation 26.

    Args:
        counts: of the n-grams.
        n: their order, to be told where there are too few to say.
    """
    of_count = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if of_count[:3].all():
        share = of_count[0] / (of_count[0] + 2 * of_count[1])
        found = tuple(float(j - (j + 1) * share * of_count[j] / of_count[j - 1]) for j in (1, 2, 3))
        if all(0 < discount <= j for j, discount in enumerate(found, 1)):
            return found
    if len(counts):
        log.info("%d-grams: too few to estimate discounts, %s are taken", n, FALLBACK_DISCOUNTS)
    return FALLBACK_DISCOUNTS
