"""Rows of a batch whose others are in other processes: what is drawn for them is what the whole batch would get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WORDS = 4
"""Numbers that come from one counter of the generator."""


class Rows(NamedTuple):
    """Rows of a whole.

    Attributes:
        places: where they stand in it; int64 (n,) where that is not one after the other.
        total: how many rows the whole has.
    """

    places: range | Tensor
    total: int

    @property
    def count(self) -> int:
        """How many are here."""
        return len(self.places)

    def before(self, end: int) -> Rows:
        """Those of them, which stand one after the other, that are in a whole of the first `end` rows."""
        return Rows(range(min(self.places.start, end), min(self.places.stop, end)), end)

    def repeated(self, times: int) -> Rows:
        """The rows of so many wholes, one after the other."""
        places = torch.arange(times)[:, None] * self.total + torch.tensor(self.places, dtype=torch.int64)
        return Rows(places.flatten(), times * self.total)


class Split(NamedTuple):
    """What a process has of the batch of a step.

    Attributes:
        weight: its share of what the loss is the mean of.
        rows: of each kind of rows that random numbers are drawn for; of as many rows the first counts.
    """

    weight: float
    rows: tuple[Rows, ...] = ()


layouts: dict[int, Rows] = {}
"""Where tensors of so many rows stand in the whole; other tensors are whole."""


def rows_of(count: int) -> Rows:
    """Where tensors of so many rows stand in the whole."""
    return layouts.get(count) or Rows(range(count), count)


@contextmanager
def laid_out(*rows: Rows | None) -> Iterator[None]:
    """In the block, tensors of as many rows as one of these has are those rows; None is left out."""
    before = dict(layouts)
    layouts.update({each.count: each for each in reversed(rows) if each is not None})
    try:
        yield
    finally:
        layouts.clear()
        layouts.update(before)


@contextmanager
def alike() -> Iterator[None]:
    """In the block all tensors are whole: what is drawn is the same in every process."""
    before = dict(layouts)
    layouts.clear()
    try:
        yield
    finally:
        layouts.update(before)


class Window:
    """The part of the whole that numbers are drawn for: around the rows, from the beginning of a counter's numbers on.

    Args:
        rows: that the numbers are for.
        numbers: that a row takes.

    Attributes:
        count: rows of the window.
    """

    def __init__(self, rows: Rows, numbers: int) -> None:
        self._rows, first = rows, rows.places.start if isinstance(rows.places, range) else 0
        lead = first % _WORDS if first * numbers % _WORDS else 0
        self._shift = (first - lead) * numbers // _WORDS
        in_a_row = isinstance(rows.places, range)
        self.count = lead + rows.count if in_a_row else rows.total
        self._places = slice(lead, None) if in_a_row else rows.places

    def key(self, key: Tensor) -> Tensor:
        """The key by which the window's numbers are drawn, of the whole's."""
        return key + key.new_tensor([0, self._shift]) if self._shift else key

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the rows among zeros."""
        if self.count == self._rows.count:
            return tensor
        places = self._places
        if isinstance(places, slice):
            return _padded(tensor, places.start)
        return tensor.new_zeros(self.count, *tensor.shape[1:]).index_copy(0, places.to(tensor.device), tensor)

    def cut(self, found: Any) -> Any:
        """The rows of what was found for the window; of several tensors, each."""
        if isinstance(found, tuple):
            return tuple(map(self.cut, found))
        if self.count == self._rows.count:
            return found
        return found[self._places if isinstance(self._places, slice) else self._places.to(found.device)]


def _padded(tensor: Tensor, lead: int) -> Tensor:
    return torch.cat([tensor.new_zeros(lead, *tensor.shape[1:]), tensor])


def window_of(count: int, numbers: int) -> Window | None:
    """The window of tensors of so many rows, whose rows take so many numbers; None where these tensors are whole."""
    rows = layouts.get(count)
    return None if rows is None or not numbers else Window(rows, numbers)


def drawn(draw: Callable[..., Any], key: Tensor, *tensors: Tensor, numbers: int | None = None) -> Any:
    """`draw(key, *tensors)`, with the random numbers that the rows get in the whole.

    Args:
        draw: an op whose results have the rows of its tensors.
        key: of the whole.
        tensors: of as many rows.
        numbers: that a row takes; by default one for each element of the first tensor.
    """
    shape = tensors[0].shape
    window = window_of(shape[0], shape[1:].numel() if numbers is None else numbers) if shape else None
    if window is None:
        return draw(key, *tensors)
    return window.cut(draw(window.key(key), *map(window.put, tensors)))
