"""How well a model foresees text, how varied the text is that it makes, and how much of it is copied."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from aigc_fast.checks import integer
from aigc_fast.metrics.copies import COPIED_LENGTH, Passages, check_texts, longest_of, share_of
from aigc_fast.models.base import evaluating
from aigc_fast.models.text import NetworkTextModel, TextModel


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts.

    Attributes:
        nats: the negative log-likelihood of the texts, including their ends.
        characters: number of characters of the texts.
        bytes: number of bytes of the texts in UTF-8.
    """

    nats: float
    characters: int
    bytes: int

    @property
    def bits_per_character(self) -> float:
        """The negative log-likelihood in bits per character."""
        return self.nats / self.characters / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """The same per byte, which compares models with different tokens."""
        return self.nats / self.bytes / math.log(2)

    @property
    def per_character(self) -> float:
        """The perplexity per character: the number of equally probable characters that would be as hard to predict."""
        return math.exp(self.nats / self.characters)

    @property
    def per_byte(self) -> float:
        """The same per byte."""
        return math.exp(self.nats / self.bytes)


def perplexity(model: TextModel, texts: Sequence[str]) -> Perplexity:
    """How well a model predicts documents, including their ends, which do not count as characters.

    Args:
        model: any model of text.
        texts: the documents, not all of them empty.

    Returns:
        The likelihood, and the perplexities that follow from it.

    Raises:
        TypeError: if an argument is not a sequence of strings.
        UserError: if there is no text, or it has characters that the model does not know and has no token for.
    """
    texts = check_texts("texts", texts)
    return _perplexity(-model.score_all(texts), texts)


def _perplexity(nats: float, texts: Sequence[str]) -> Perplexity:
    size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    return Perplexity(nats, characters=sum(map(len, texts)), bytes=size)


@dataclass(frozen=True)
class WeightsChange:
    """How a model's predictions change with the format of its weights, on the same texts.

    Attributes:
        weights: the format.
        tokens: number of tokens of the texts, including their ends.
        divergence: the Kullback-Leibler divergence from the probabilities with the original weights, in nats per token.
        agreement: the share of positions at which the most probable token is the same.
        before: how well the model predicts the texts with the original weights.
        after: the same with the weights in that format.
    """

    weights: str
    tokens: int
    divergence: float
    agreement: float
    before: Perplexity
    after: Perplexity


def weights_change(model: NetworkTextModel, texts: Sequence[str], weights: str) -> WeightsChange:
    """How a model's predictions change when its weights are kept in a format, as they are from then on.

    Args:
        model: a decoder or a character model.
        texts: the documents, not all of them empty.
        weights: "fp32", "bf16", "int8" or "int4".

    Returns:
        The change, on these texts.

    Raises:
        TypeError: if an argument is not a sequence of strings.
        UserError: as `perplexity`, or where the model can't keep them.
        ValueError: for another name.
    """
    texts = check_texts("texts", texts)
    tokens = model.tokens_of(texts).to(model.device)
    before = after = divergence = same = 0.0
    for places, wanted, found in _in_both_forms(model, tokens, weights):
        own = tokens[places, None].to(wanted.device)
        before -= wanted.gather(1, own).double().sum().item()
        after -= found.gather(1, own).double().sum().item()
        # What is impossible adds nothing.
        divergence += (wanted.exp() * (wanted - found)).nan_to_num(0.0).double().sum().item()
        same += (wanted.argmax(-1) == found.argmax(-1)).sum().item()
    count = len(tokens)
    parts = divergence / count, same / count
    return WeightsChange(weights, count, *parts, _perplexity(before, texts), _perplexity(after, texts))


def _in_both_forms(model: NetworkTextModel, tokens: Tensor, weights: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Places, and the logarithms of the probabilities there: by weights as they are, and by the kept ones."""
    passes = {way: model.foreseen(tokens) for way in (None, weights)}
    with evaluating(model):
        while True:
            found = []
            for way, parts in passes.items():
                model.keep_weights(way)
                found.append(next(parts, None))
            if found[0] is None:
                return
            (places, wanted), (_, kept) = found
            yield places, wanted.float(), kept.float()


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The number of different n-grams of words, as a share of all: 1 if none is repeated.

    Words are separated by white space; n-grams do not cross from one text to the next. The share falls with the length
    of the texts: compare texts of equal length.

    Args:
        texts: not all of them empty.
        n: words an n-gram, at least 1.

    Returns:
        The share; 0 where no text is n words long.

    Raises:
        TypeError: if an argument is not a sequence of strings, or n not an integer.
        UserError: if there is no text.
        ValueError: if n is not positive.

    Source: Li, Galley, Brockett, Gao and Dolan, "A diversity-promoting objective function for neural conversation
    models", 2016, which divides by the number of words instead.
    """
    n = integer("n", n, 1)
    grams = [gram for text in check_texts("texts", texts) for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


@dataclass(frozen=True)
class TextReport:
    """The result of `evaluate_text`.

    Figures of held-out text are for as many of its characters as were generated, to show what can be reached.

    Attributes:
        count: number of generated texts.
        training_count: number of documents they were compared with.
        characters: number of characters of the generated texts.
        distinct_1: number of different words, as a share of all.
        distinct_1_of_held_out: the same for held-out text.
        distinct_2: number of different pairs of words, as a share of all.
        distinct_2_of_held_out: the same for held-out text.
        copied: share of the passages of 20 characters that also occur in the training text.
        copied_of_held_out: the same for held-out text.
        longest_copied: length of the longest passage that also occurs in the training text, in characters.
        longest_copied_of_held_out: the same for held-out text.
        passage: that passage.
        bits_per_character: of held-out text, by the model; None without a model.
        bits_per_byte: likewise.
        perplexity_per_character: likewise.
        perplexity_per_byte: likewise.
        weights: the format of the model's weights; None for the original ones.
        divergence: of the predictions on held-out text from those with the original weights, in nats per token; None
            for the original ones.
        agreement: the share of positions at which both have the same most probable token; likewise.
        perplexity_per_token: of held-out text, with the weights in that format; likewise.
        perplexity_per_token_as_they_are: with the original weights; likewise.
        bits_per_character_as_they_are: likewise.
        bits_per_byte_as_they_are: likewise.
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
    weights: str | None = None
    divergence: float | None = None
    agreement: float | None = None
    perplexity_per_token: float | None = None
    perplexity_per_token_as_they_are: float | None = None
    bits_per_character_as_they_are: float | None = None
    bits_per_byte_as_they_are: float | None = None

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
        model: by which held-out text is foreseen; where it keeps its weights in another form, by both.

    Returns:
        The report.

    Raises:
        TypeError: if an argument is not a sequence of strings.
        UserError: if one of them has no text.
    """
    characters = sum(map(len, check_texts("generated", generated)))
    compared = _beginning(check_texts("held_out", held_out), characters)
    known = Passages("training", training)
    parts = Passages("generated", generated), Passages("held_out", compared)
    copied, copied_of_held_out = (share_of(part, known, COPIED_LENGTH) for part in parts)
    longest, longest_of_held_out = (longest_of(part, known).text for part in parts)
    report = TextReport(
        count=len(generated),
        training_count=len(training),
        characters=characters,
        distinct_1=distinct_n(generated, 1),
        distinct_1_of_held_out=distinct_n(compared, 1),
        distinct_2=distinct_n(generated, 2),
        distinct_2_of_held_out=distinct_n(compared, 2),
        copied=copied,
        copied_of_held_out=copied_of_held_out,
        longest_copied=len(longest),
        longest_copied_of_held_out=len(longest_of_held_out),
        passage=longest,
    )
    if model is None:
        return report
    change = None if model.weights is None else weights_change(model, held_out, model.weights)
    found = perplexity(model, held_out) if change is None else change.after
    return replace(
        report,
        bits_per_character=found.bits_per_character,
        bits_per_byte=found.bits_per_byte,
        perplexity_per_character=found.per_character,
        perplexity_per_byte=found.per_byte,
        **({} if change is None else _figures_of(change)),
    )


def _figures_of(change: WeightsChange) -> dict[str, Any]:
    return {
        "weights": change.weights,
        "divergence": change.divergence,
        "agreement": change.agreement,
        "perplexity_per_token": math.exp(change.after.nats / change.tokens),
        "perplexity_per_token_as_they_are": math.exp(change.before.nats / change.tokens),
        "bits_per_character_as_they_are": change.before.bits_per_character,
        "bits_per_byte_as_they_are": change.before.bits_per_byte,
    }


def _beginning(texts: Sequence[str], characters: int) -> list[str]:
    """The first texts, the last of them cut, of so many characters in all, or all of them."""
    found = []
    for text in texts:
        found.append(text[:characters])
        characters -= len(found[-1])
    return found
