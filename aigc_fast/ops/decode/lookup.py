"""Prompt lookup (Saxena, 2023): what followed the last tokens before is likely to follow again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

# With the token before them, as many rows as share a reading of the weights.
MOST_GUESSED = 7
# Longer matches are as good as these.
LONGEST_MATCH = 16


class Lookup:
    """Tokens so far, and where each of them stands.

    Args:
        tokens: the prompt's.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """One token more."""
        self._places[token].append(len(self._tokens))
        self._tokens.append(token)

    def following(self, count: int) -> list[int]:
        """What followed the longest match of the last tokens, of several as long the most recent one.

        Args:
            count: of tokens, at most.
        """
        best, after = 0, None
        for place in reversed(self._places[self._tokens[-1]][:-1]):
            length = self._match(place)
            if length > best:
                best, after = length, place + 1
            if best == LONGEST_MATCH:
                break
        return [] if after is None else self._tokens[after : after + max(0, count)]

    def _match(self, place: int) -> int:
        """How many tokens up to a place are the last ones."""
        tokens, last, length = self._tokens, len(self._tokens) - 1, 1
        while length < LONGEST_MATCH and length <= place and tokens[place - length] == tokens[last - length]:
            length += 1
        return length
