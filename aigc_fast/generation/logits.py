"""Logits processors: what is done to logits before a token is drawn.

Each takes ``(input_ids, scores)``, int64 (B, T) and floating-point (B, V), and returns scores of the same shape, -inf
for what must not be drawn. So they fit `logits_processor=[...]` of transformers' `generate`, and any loop that draws
tokens. Those that transformers brings are not repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from aigc_fast.runtime.arguments import check_generator, check_probability, check_types, number, whole

_NEVER = float("-inf")


def _check(scores: Tensor) -> None:
    check_types(scores=scores)
    if scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}: expected (B, V)")


def _check_ids(input_ids: Tensor, scores: Tensor) -> None:
    check_types(input_ids=input_ids)
    if input_ids.dim() != 2 or len(input_ids) != len(scores):
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: expected ({len(scores)}, T)")


class TopNSigma:
    """Keeps the tokens whose logits are within n standard deviations of the greatest.

    Unlike top-k and top-p it keeps the same tokens at any temperature. Method: Tang et al., "Top-nσ: not all logits are
    you need", 2024; the deviation is that of all logits that are not -inf, the population's.

    Args:
        n: standard deviations.

    Raises:
        TypeError: for an n that is no number.
        ValueError: for n that is not positive.

    Example:
        >>> model.generate(ids, do_sample=True, logits_processor=[TopNSigma(1.0)])
    """

    def __init__(self, n: float = 1.0) -> None:
        if not number("n", n) > 0:
            raise ValueError(f"n={n}: expected a positive number of standard deviations")
        self.n = n

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, -inf where they are too far below the greatest of their row."""
        _check(scores)
        wide = scores.double()
        possible = wide.isfinite()
        count = possible.sum(-1, keepdim=True).clamp_min(1)
        known = wide.masked_fill(~possible, 0)
        mean = known.sum(-1, keepdim=True) / count
        variance = ((known - mean).square() * possible).sum(-1, keepdim=True) / count
        least = wide.amax(-1, keepdim=True) - self.n * variance.sqrt()
        return scores.masked_fill(wide < least, _NEVER)


class DRY:
    """Penalizes tokens that would go on repeating what was written before ("don't repeat yourself").

    A token that followed an earlier occurrence of the last n tokens, n at least `allowed_length`, loses
    ``multiplier * base ** (n - allowed_length)``, for the longest such n. Source: the sampler of this name in
    text-generation-webui (pull request 5677), which llama.cpp has as well.

    Args:
        multiplier: of the penalty; 0 does nothing.
        base: by which the penalty grows with each token that repeats.
        allowed_length: tokens that may repeat before there is a penalty.
        breakers: ids across which nothing counts as a repetition, as those of line breaks and quotation marks.
        window: so many of the last tokens are looked at; all by default.

    Raises:
        ValueError: for a negative multiplier, a base below 1, or lengths below 1.
    """

    def __init__(
        self,
        multiplier: float = 0.8,
        base: float = 1.75,
        allowed_length: int = 2,
        breakers: Collection[int] = (),
        window: int | None = None,
    ) -> None:
        if not number("multiplier", multiplier) >= 0:
            raise ValueError(f"multiplier={multiplier}: expected 0 or more")
        if not number("base", base) >= 1:
            raise ValueError(f"base={base}: expected 1 or more")
        if whole("allowed_length", allowed_length) < 1:
            raise ValueError(f"allowed_length={allowed_length}: expected 1 token or more")
        if window is not None and whole("window", window) < 1:
            raise ValueError(f"window={window}: expected 1 token or more")
        self.multiplier, self.base, self.allowed_length = multiplier, base, allowed_length
        self.breakers, self.window = frozenset(breakers), window

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, less the penalties."""
        _check(scores)
        _check_ids(input_ids, scores)
        found = scores.clone()
        for row, ids in zip(found, input_ids.tolist(), strict=True):
            lengths = self._repeated(ids if self.window is None else ids[-self.window :])
            for token, length in lengths.items():
                # Beyond any logit, and within what a float holds.
                exponent = min(length - self.allowed_length, 64)
                row[token] -= self.multiplier * self.base**exponent
        return found

    def _repeated(self, ids: list[int]) -> dict[int, int]:
        """Of each token that would go on a repetition that is long enough, how long that is already."""
        longest: dict[int, int] = {}
        for end, length in enumerate(_matches_of_end(ids, self.breakers)):
            token = ids[end + 1]
            if length >= self.allowed_length and token not in self.breakers:
                longest[token] = max(length, longest.get(token, 0))
        return longest


def _matches_of_end(ids: list[int], breakers: Collection[int]) -> list[int]:
    """For each place but the last, how many tokens that end there are those that the list ends with.

    By Gusfield's Z algorithm on the reversed list, whose time is its length.
    """
    reversed_ids, count = ids[::-1], len(ids)
    # Up to the first token across which nothing is compared.
    limit = next((i for i, token in enumerate(reversed_ids) if token in breakers), count)
    lengths, left, right = [0] * count, 0, 0
    for i in range(1, count):
        length = min(right - i, lengths[i - left]) if i < right else 0
        while length < limit and i + length < count and reversed_ids[length] == reversed_ids[i + length]:
            length += 1
        lengths[i] = length
        if i + length > right:
            left, right = i, i + length
    return lengths[:0:-1]


class XTC:
    """Now and then excludes the likeliest tokens ("exclude top choices"), for less predictable text.

    With some probability all tokens that reach a threshold are excluded but the least likely of them; where fewer than
    two reach it, none is. Source: the sampler of this name in text-generation-webui (pull request 6335), which
    llama.cpp has as well.

    Args:
        threshold: the probability that a token must reach to be a top choice.
        probability: how often they are excluded.
        keep: ids that are never excluded, as those of line breaks and the end.
        generator: source of the draw; by default torch's default generator of the device.

    Raises:
        ValueError: for probabilities outside of [0, 1].
    """

    def __init__(
        self,
        threshold: float = 0.1,
        probability: float = 0.5,
        keep: Collection[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value in (("threshold", threshold), ("probability", probability)):
            check_probability(name, value)
        check_generator(generator)
        self.threshold, self.probability = threshold, probability
        self.keep, self.generator = sorted(set(keep)), generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, -inf for what is excluded in the rows where a draw says so."""
        _check(scores)
        probabilities = scores.float().softmax(-1)
        chosen = probabilities >= self.threshold
        least = probabilities.masked_fill(~chosen, float("inf")).argmin(-1, keepdim=True)
        excluded = chosen.scatter(-1, least, False)
        if self.keep:
            excluded[:, self.keep] = False
        source = self.generator.device if self.generator is not None else scores.device
        draws = torch.rand(len(scores), 1, generator=self.generator, device=source).to(scores.device)
        return scores.masked_fill(excluded & (draws < self.probability), _NEVER)


class MirostatV2:
    """Keeps the surprise of what is drawn near a target, by cutting off what is too surprising.

    Tokens whose surprise, -log2 of their probability, is above mu are excluded; after each token mu falls by
    ``learning_rate`` times what its surprise, among what was left, was above `target`. Method: Basu et al., "Mirostat:
    a neural text decoding algorithm that directly controls perplexity", ICLR 2021, in the form without an estimate of
    Zipf's exponent that llama.cpp calls version 2.

    A processor sees a token when it is asked for the next one. It holds the state of the sequences that it is called
    with: tokens must be drawn from the scores that it returned, in order; where the sequences are others than before,
    as with a new prompt or beams that change places, mu begins again at twice the target.

    Args:
        target: bits of surprise for each token.
        learning_rate: how fast mu follows.

    Raises:
        ValueError: for a target or rate that is not positive.
    """

    def __init__(self, target: float = 5.0, learning_rate: float = 0.1) -> None:
        for name, value in (("target", target), ("learning_rate", learning_rate)):
            if not 0 < number(name, value) < math.inf:
                raise ValueError(f"{name}={value}: expected a positive number")
        self.target, self.learning_rate = target, learning_rate
        self._mu: Tensor | None = None
        self._before: tuple[Tensor, Tensor] | None = None

    @property
    def mu(self) -> Tensor | None:
        """The greatest surprise that is left to each row, in bits, float64 (B, 1); None before the first call."""
        return self._mu

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, -inf where a token is too surprising; the likeliest token of a row always stays."""
        _check(scores)
        _check_ids(input_ids, scores)
        self._learn(input_ids, scores)
        surprise = -scores.double().log_softmax(-1) / math.log(2)
        too_high = surprise > self._mu
        too_high.scatter_(-1, surprise.argmin(-1, keepdim=True), False)
        left = scores.masked_fill(too_high, _NEVER)
        self._before = input_ids.clone(), -left.double().log_softmax(-1) / math.log(2)
        return left

    def _learn(self, input_ids: Tensor, scores: Tensor) -> None:
        before = self._before
        goes_on = before is not None and input_ids.shape == (before[0].shape[0], before[0].shape[1] + 1)
        if goes_on and torch.equal(input_ids[:, :-1], before[0]):
            surprise = before[1].gather(-1, input_ids[:, -1:])
            # A token that was not left to be drawn came from elsewhere, as padding does after the end of a row.
            error = torch.where(surprise.isfinite(), surprise - self.target, 0)
            self._mu = self._mu - self.learning_rate * error
        else:
            self._mu = torch.full((len(scores), 1), 2 * self.target, dtype=torch.float64, device=scores.device)
