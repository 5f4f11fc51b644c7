"""How much of a text is copied from another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aigc_fast.checks import check_strings, integer
from aigc_fast.errors import UserError
from aigc_fast.wording import counted

COPIED_LENGTH = 20
"""Characters of a passage that is seldom the same by chance: about four words."""

_FIRST_TRIED = 16


def copied_share(texts: Sequence[str], training: Sequence[str], n: int = COPIED_LENGTH) -> float:
    """The share of passages of n characters that the training text holds as well, letter by letter.

    Args:
        texts: not all of them empty.
        training: the documents that a model was trained on, likewise.
        n: characters of a passage, at least 1.

    Returns:
        The share; 0 where no text is n characters long.

    Raises:
        TypeError: if an argument is not a sequence of strings, or n not an integer.
        UserError: if there is no text.
        ValueError: if n is not positive.
    """
    n = integer("n", n, 1)
    return share_of(Passages("texts", texts), Passages("training", training), n)


def share_of(made: Passages, known: Passages, n: int) -> float:
    """See `copied_share`."""
    places = made.places(n)
    return float(np.isin(made.keys(places, n), known.keys(known.places(n), n)).mean()) if len(places) else 0.0


class Passage(NamedTuple):
    """A passage that occurs in a text and in a training document.

    Attributes:
        text: the passage.
        made: (index, start), which text, and where in it.
        known: (index, start), which training document, and where in it.
    """

    text: str
    made: tuple[int, int]
    known: tuple[int, int]


def longest_copied(texts: Sequence[str], training: Sequence[str]) -> Passage:
    """The longest passage of the texts that the training text holds as well, letter by letter; the first of equals.

    Args:
        texts: not all of them empty.
        training: the documents that a model was trained on, likewise.

    Returns:
        The passage, and where it stands; an empty one where the two have no character in common.

    Raises:
        TypeError: if an argument is not a sequence of strings.
        UserError: if there is no text.
    """
    return longest_of(Passages("texts", texts), Passages("training", training))


def longest_of(made: Passages, known: Passages) -> Passage:
    """See `longest_copied`."""
    length, common = 0, (made.places(1), known.places(1))
    # Whatever is longer than a passage holds it: where there is none of a length, there is none of a greater one.
    tried, most = _FIRST_TRIED, None
    while most is None or length < most:
        if longer := _common(made, known, *common, tried):
            length, common = tried, longer
        else:
            most = tried - 1
        tried = 2 * length if most is None else (length + most + 1) // 2
    if not length:
        return Passage("", (0, 0), (0, 0))
    places = common[0][:1]
    same = known.keys(common[1], length) == made.keys(places, length)
    index, begin = made.place(places[0])
    return Passage(made.texts[index][begin : begin + length], (index, begin), known.place(common[1][same][0]))


def _common(
    made: Passages, known: Passages, of_made: np.ndarray, of_known: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of places, those where passages of n characters begin that both have; None where there are none."""
    of_made, of_known = made.places(n, of_made), known.places(n, of_known)
    first, second = made.keys(of_made, n), known.keys(of_known, n)
    found = np.isin(first, second)
    return (of_made[found], of_known[np.isin(second, first[found])]) if found.any() else None


class Passages:
    """The passages of texts, told apart by numbers of 64 bits.

    Args:
        name: of the argument.
        texts: one after the other.

    Raises:
        TypeError, UserError: see `longest_copied`.
    """

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        self.texts = check_texts(name, texts)
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
        lengths = np.array([len(text) for text in texts])
        self._ends = np.cumsum(lengths)
        self._left = np.repeat(self._ends, lengths) - np.arange(len(codes))
        self._powers = [_mixed(codes.astype(np.uint64), np.uint64(0))]

    def places(self, n: int, among: np.ndarray | None = None) -> np.ndarray:
        """Where passages of n characters begin, of all places or among some."""
        return np.flatnonzero(self._left >= n) if among is None else among[self._left[among] >= n]

    def keys(self, places: np.ndarray, n: int) -> np.ndarray:
        """uint64, the numbers of the passages of n characters that begin at places: equal where passages are."""
        power = n.bit_length() - 1
        while len(self._powers) <= power:
            half = self._powers[-1]
            step = 1 << (len(self._powers) - 1)
            self._powers.append(_mixed(half[:-step], half[step:]))
        # Two passages of a power of two, which may overlap, make one of any length.
        whole = self._powers[power]
        return _mixed(whole[places], whole[places + (n - (1 << power))])

    def place(self, at: int) -> tuple[int, int]:
        """(index of the text, place in it)."""
        index = int(np.searchsorted(self._ends, at, side="right"))
        return index, int(at - (self._ends[index - 1] if index else 0))


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A number of 64 bits for each pair, as good as a random one; the finalizer of MurmurHash3 (Appleby, 2011)."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(33))


def check_texts(name: str, texts: Sequence[str]) -> Sequence[str]:
    """The texts; raises TypeError on what is no sequence of strings, UserError where there is no text."""
    check_strings(name, texts)
    if not any(texts):
        raise UserError(f"{name}: expected text, got {counted(len(texts), 'texts')} without a character")
    return texts
