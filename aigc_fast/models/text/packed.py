"""Sequences of various lengths, one after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.runtime.rows import Rows


class Lengths:
    """Where the elements of sequences lie that are packed one after the other.

    Args:
        lengths: of each sequence, 0 or more; at least one sequence.
        device: of what is packed.

    Attributes:
        each: the lengths.
        total: their sum.
        longest: the greatest of them.
        rows: where the elements stand among those of all processes, where sequences are in several.
    """

    rows: Rows | None = None

    def __init__(self, lengths: list[int], device: torch.device | str = "cpu") -> None:
        self.each, self.device = lengths, torch.device(device)
        self.total, self.longest = sum(lengths), max(lengths)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Lengths]:
        """Sequences of tokens, packed, int64 (total,), and their lengths."""
        tokens = torch.from_numpy(np.concatenate(rows)).to(device)
        return tokens, cls(list(map(len, rows)), device)

    @cached_property
    def bounds(self) -> Tensor:
        """int64 (N + 1,): sequence n has the elements from bounds[n] up to bounds[n + 1]."""
        return torch.tensor([0, *accumulate(self.each)], device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """int64 (total,), the place of each element in its sequence."""
        before = self.bounds[:-1].repeat_interleave(self._counts, output_size=self.total)
        return torch.arange(self.total, device=self.device) - before

    @cached_property
    def places(self) -> Tensor:
        """int64 (total,), where each element is in the N * longest of padded sequences."""
        rows = torch.arange(len(self.each), device=self.device)
        return rows.repeat_interleave(self._counts, output_size=self.total) * self.longest + self.positions

    @cached_property
    def visible(self) -> Tensor:
        """bool (N, longest), false for padding."""
        return torch.arange(self.longest, device=self.device) < self._counts[:, None]

    @property
    def is_even(self) -> bool:
        """Whether there is no padding."""
        return self.total == len(self.each) * self.longest

    @cached_property
    def _counts(self) -> Tensor:
        return torch.tensor(self.each, device=self.device)

    def padded(self, x: Tensor) -> Tensor:
        """(total, ...) to (N, longest, ...), zeros behind the shorter ones."""
        if not self.is_even:
            # What is written is all that is read of it.
            x = x.new_zeros(len(self.each) * self.longest, *x.shape[1:]).index_copy(0, self.places, x)
        return x.unflatten(0, (len(self.each), self.longest))

    def packed(self, x: Tensor) -> Tensor:
        """(N, longest, ...) to (total, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.is_even else flat.index_select(0, self.places)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    of_queries: Lengths,
    of_keys: Lengths,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Attention inside each of several packed sequences: as they lie on the CPU, elsewhere in padded ones.

    Args:
        query: (total queries, heads, size).
        key, value: (total keys, heads, size).
        of_queries, of_keys: of as many sequences each.
        is_causal: whether a query sees no keys after its own; then the lengths are the same.
        dropout: the share of attention weights to drop.

    Returns:
        (total queries, heads * size); zeros where there are no keys.
    """
    way = attend_packed if query.is_cpu else attend_padded
    return way(query, key, value, of_queries, of_keys, is_causal, dropout).flatten(1)


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, of_queries: Lengths, of_keys: Lengths, is_causal: bool, dropout: float
) -> Tensor:
    """See `attend`: (total queries, heads, size), without padding."""
    bounds, window = (of_queries.bounds, of_keys.bounds), (-1, 0) if is_causal else (-1, -1)
    return functional.varlen_attn(query, key, value, *bounds, window_size=window, dropout_p=dropout)


def attend_padded(
    query: Tensor, key: Tensor, value: Tensor, of_queries: Lengths, of_keys: Lengths, is_causal: bool, dropout: float
) -> Tensor:
    """See `attend`: (total queries, heads, size), all sequences in one call of as many tokens as the longest has."""
    # Padding behind a sequence is hidden by causality already.
    seen = None if is_causal or of_keys.is_even else of_keys.visible[:, None, None, :]
    found = functional.scaled_dot_product_attention(
        of_queries.padded(query).transpose(1, 2),
        of_keys.padded(key).transpose(1, 2),
        of_keys.padded(value).transpose(1, 2),
        seen,
        dropout,
        is_causal=is_causal,
    )
    return of_queries.packed(found.transpose(1, 2))
