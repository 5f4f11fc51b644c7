"""How the next token is chosen: the settings that all models of text share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aigc_fast.errors import UserError


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        length: the most tokens.
        temperature: divides the logarithms of the probabilities; 0 takes the most probable token.
        top_k: of how many of the most probable tokens one is drawn, and of those that equal the least of them; None of
            all.
        top_p: one is drawn of the fewest most probable tokens whose probabilities sum up to this, of equals the first;
            None of all.
        stop: strings at whose first occurrence the text ends, before it; given as one, as several or as None.

    Raises:
        UserError: for a value out of range.
    """

    length: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: str | Sequence[str] | None = ()

    def __post_init__(self) -> None:
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop
        temperature, top_p = self.temperature, self.top_p
        for name, holds, expected in (
            ("length", _integer(self.length) and self.length >= 0, "0 or more tokens"),
            ("temperature", _number(temperature) and 0 <= temperature < math.inf, "a number above 0, or 0 for greedy"),
            ("top_k", self.top_k is None or (_integer(self.top_k) and self.top_k >= 1), "1 or more tokens"),
            ("top_p", top_p is None or (_number(top_p) and 0 < top_p <= 1), "a number above 0, at most 1"),
            (
                "stop",
                isinstance(stop, Sequence) and all(isinstance(one, str) and one for one in stop),
                "a string, or several, none of them empty",
            ),
        ):
            if not holds:
                raise UserError(f"{name}={getattr(self, name)!r}: expected {expected}")
        object.__setattr__(self, "stop", tuple(stop))

    def probabilities(self, logarithms: np.ndarray) -> np.ndarray:
        """What the tokens are drawn by: temperature first, then top_k, then top_p, as in transformers.

        Args:
            logarithms: (V,) natural logarithms of the model's probabilities, or these and a constant; -inf for what
                must not be drawn, not all of them.

        Returns:
            float64 (V,), whose sum is 1.
        """
        scaled = logarithms.astype(np.float64) - logarithms.max()
        if self.temperature == 0:
            # The first of equals.
            return np.eye(1, len(scaled), scaled.argmax())[0]
        kept = np.exp(scaled / self.temperature)
        if self.top_k is not None and self.top_k < len(scaled):
            kept[scaled < np.partition(scaled, -self.top_k)[-self.top_k]] = 0
        if self.top_p is not None:
            order = np.argsort(-kept, kind="stable")
            sums = np.cumsum(kept[order])
            kept[order[1 + int(np.searchsorted(sums, self.top_p * sums[-1])) :]] = 0
        return kept / kept.sum()

    def choose(self, logarithms: np.ndarray, uniform: float) -> int:
        """A token by the probabilities.

        Args:
            logarithms: (V,), see `probabilities`.
            uniform: a random number in [0, 1).
        """
        sums = np.cumsum(self.probabilities(logarithms))
        return int(np.searchsorted(sums, uniform * sums[-1], side="right"))
