"""How well a model foresees text, how varied the text is that it makes, and how much of it is copied."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from aigc_fast.checks import integer
from aigc_fast.errors import UserError
from aigc_fast.models.text import TextModel
from aigc_fast.wording import counted

COPIED_LENGTH = 20
"""Characters of a passage that is seldom the same by chance: about four words."""

_FIRST_TRIED = 16


@dataclass(frozen=True)
class Perplexity:
    """How well a model foresees text.

    Attributes:
        nats: -log of the texts' probability, each with its end.
        characters: of the texts.
        bytes: of the texts in UTF-8.
    """

    nats: float
    characters: int
    bytes: int

    @property
    def bits_per_character(self) -> float:
        """Of information that the model lacks before it sees the next character."""
        return self.nats / self.characters / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """The same of bytes, by which models with other tokens can be compared."""
        return self.nats / self.bytes / math.log(2)

    @property
    def per_character(self) -> float:
        """exp of the mean -log: among how many equally probable characters the model might as well choose."""
        return math.exp(self.nats / self.characters)

    @property
    def per_byte(self) -> float:
        """The same of bytes."""
        return math.exp(self.nats / self.bytes)


def perplexity(model: TextModel, texts: Sequence[str]) -> Perplexity:
    """How well a model foresees documents; their ends are foreseen too, but counted as no characters.

    Args:
        model: any model of text.
        texts: the documents, not all of them empty.

    Raises:
        TypeError: on what is no sequence of strings.
        UserError: where there is no text, or it has characters that the model does not know and has no token for.
    """
    texts = _checked("texts", texts)
    return Perplexity(
        nats=-model.score_all(texts),
        characters=sum(map(len, texts)),
        bytes=sum(len(text.encode(errors="surrogatepass")) for text in texts),
    )


def distinct_n(texts: Sequence[str], n: int) -> float:
    """How many of the n-grams of words are different ones, as a share: 1 where none is repeated.

    Words are what white space parts; no n-gram reaches from one text to the next. The share falls with the length of
    the texts: compare texts of equal length.

    Args:
        texts: not all of them empty.
        n: words an n-gram, at least 1.

    Returns:
        The share; 0 where no text is n words long.

    Raises:
        TypeError: on what is no sequence of strings, or an n that is no integer.
        UserError: where there is no text.
        ValueError: where n is not positive.

    Source: Li, Galley, Brockett, Gao and Dolan, "A diversity-promoting objective function for neural conversation
    models", 2016, which divides by the number of words instead.
    """
    n = integer("n", n, 1)
    grams = [gram for text in _checked("texts", texts) for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def copied_share(texts: Sequence[str], training: Sequence[str], n: int = COPIED_LENGTH) -> float:
    """The share of passages of n characters that the training text holds as well, letter by letter.

    Args:
        texts: not all of them empty.
        training: the documents that a model was trained on, likewise.
        n: characters of a passage, at least 1.

    Returns:
        The share; 0 where no text is n characters long.

    Raises:
        TypeError: on what is no sequence of strings, or an n that is no integer.
        UserError: where there is no text.
        ValueError: where n is not positive.
    """
    n = integer("n", n, 1)
    made, known = _Passages("texts", texts), _Passages("training", training)
    places = made.places(n)
    if not len(places):
        return 0.0
    return float(np.isin(made.keys(places, n), known.keys(known.places(n), n)).mean())


class Passage(NamedTuple):
    """A passage that stands in two places.

    Attributes:
        text: the passage.
        made: (index, start) of the text that has it.
        known: (index, start) of the training document that has it.
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
        TypeError: on what is no sequence of strings.
        UserError: where there is no text.
    """
    made, known = _Passages("texts", texts), _Passages("training", training)
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
    start = common[0][0]
    same = known.keys(common[1], length) == made.keys(common[0][:1], length)
    index, begin = made.place(start)
    text = texts[index][begin : begin + length]
    return Passage(text, (index, begin), known.place(common[1][same][0]))


def _common(
    made: _Passages, known: _Passages, of_made: np.ndarray, of_known: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of places, those where passages of n characters begin that both have; None where there are none."""
    of_made, of_known = made.places(n, of_made), known.places(n, of_known)
    first, second = made.keys(of_made, n), known.keys(of_known, n)
    found = np.isin(first, second)
    return (of_made[found], of_known[np.isin(second, first[found])]) if found.any() else None


class _Passages:
    """The passages of texts, told apart by numbers of 64 bits.

    Args:
        name: of the argument.
        texts: one after the other.
    """

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        texts = _checked(name, texts)
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


def _checked(name: str, texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        what = "a single one" if isinstance(texts, str) else type(texts).__name__
        raise TypeError(f"{name}: expected a sequence of strings, got {what}")
    if not any(texts):
        raise UserError(f"{name}: expected text, got {counted(len(texts), 'texts')} without a character")
    return texts


@dataclass(frozen=True)
class TextReport:
    """What `evaluate_text` found.

    The figures of held-out text are those of as many characters of it as were generated: what could be reached.

    Attributes:
        count: how many generated texts were measured.
        training_count: how many documents they were compared with.
        characters: of the generated texts.
        distinct_1: share of the words that are different ones.
        distinct_1_of_held_out: the same of held-out text.
        distinct_2: share of the pairs of words that are different ones.
        distinct_2_of_held_out: the same of held-out text.
        copied: share of the passages of 20 characters that the training text holds too.
        copied_of_held_out: the same of held-out text.
        longest_copied: characters of the longest passage that the training text holds too.
        longest_copied_of_held_out: the same of held-out text.
        passage: that passage.
        bits_per_character: of held-out text, by the model; None without a model.
        bits_per_byte: likewise.
        perplexity_per_character: likewise.
        perplexity_per_byte: likewise.
    """

    count: int
    training_count: int
    characters: int
    distinct_1: float
    distinct_1_of_held_out: float
    distinct_2: float
    distinct_2_of_held_out: float
    copied: float
    copied_of_held_out: float
    longest_copied: int
    longest_copied_of_held_out: int
    passage: str
    bits_per_character: float | None = None
    bits_per_byte: float | None = None
    perplexity_per_character: float | None = None
    perplexity_per_byte: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a JSON-able dictionary."""
        return asdict(self)


def evaluate_text(
    generated: Sequence[str], training: Sequence[str], held_out: Sequence[str], model: TextModel | None = None
) -> TextReport:
    """Measures generated text against the training text, and the model, where it is given, by held-out text.

    Args:
        generated: the texts.
        training: the documents that the model was trained on.
        held_out: documents of the same kind that it was not trained on.
        model: by which held-out text is foreseen.

    Returns:
        The report.

    Raises:
        TypeError: on what is no sequence of strings.
        UserError: where one of them has no text.
    """
    characters = sum(map(len, _checked("generated", generated)))
    compared = _beginning(_checked("held_out", held_out), characters)
    passages = [longest_copied(texts, training).text for texts in (generated, compared)]
    report = TextReport(
        count=len(generated),
        training_count=len(training),
        characters=characters,
        distinct_1=distinct_n(generated, 1),
        distinct_1_of_held_out=distinct_n(compared, 1),
        distinct_2=distinct_n(generated, 2),
        distinct_2_of_held_out=distinct_n(compared, 2),
        copied=copied_share(generated, training),
        copied_of_held_out=copied_share(compared, training),
        longest_copied=len(passages[0]),
        longest_copied_of_held_out=len(passages[1]),
        passage=passages[0],
    )
    if model is None:
        return report
    found = perplexity(model, held_out)
    return replace(
        report,
        bits_per_character=found.bits_per_character,
        bits_per_byte=found.bits_per_byte,
        perplexity_per_character=found.per_character,
        perplexity_per_byte=found.per_byte,
    )


def _beginning(texts: Sequence[str], characters: int) -> list[str]:
    """The first texts, the last of them cut, of so many characters in all, or all of them."""
    found = []
    for text in texts:
        found.append(text[:characters])
        characters -= len(found[-1])
    return found
