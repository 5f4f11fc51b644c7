"""What models share that decode with transformers' options: how ids are checked, found, streamed and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.models.text.decoding import Plan, Sequences, beam_search, sample


class Streamer(Protocol):
    """Takes tokens as they come, as transformers' streamers do."""

    def put(self, value: Tensor) -> None:
        """The prompt's ids (rows, length), then new ones (rows,)."""

    def end(self) -> None:
        """There are no more."""


@dataclass(frozen=True)
class Speed:
    """How fast a model generated.

    Attributes:
        tokens: new ones, of all sequences.
        first: seconds to the first of them, the prompt and the packing of weights that changed included.
        seconds: to the last.
    """

    tokens: int
    first: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of those after the first; of all, where they come at once."""
        after = self.tokens - 1 if self.seconds > self.first else self.tokens
        return after / max(self.seconds - self.first if self.seconds > self.first else self.seconds, 1e-9)

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.tokens_per_second:.0f} tokens/s, the first after {self.first:.2f} s"


class Decoding:
    """A model that decodes by a `Plan`.

    Attributes:
        vocab_size: of the embedding.
        speed: of what was generated last, or None.
    """

    vocab_size: int
    speed: Speed | None = None

    def _checked(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2 or 0 in ids.shape:
            what = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise UserError(f"inputs: expected a text, or int64 ids (N, T), not empty, got {what}")
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.vocab_size:
            raise UserError(f"inputs: expected ids of 0 to {self.vocab_size - 1}, got {lowest} to {highest}")
        return ids.to(self.device)

    def _check_options(self, ends: Sequence[int], padding: int | None) -> None:
        for name, tokens in (("eos_token_id", ends), ("pad_token_id", () if padding is None else (padding,))):
            if any(token >= self.vocab_size for token in tokens):
                raise UserError(f"{name}={list(tokens)}: expected 0 to {self.vocab_size - 1}")

    def _decoded(self, plan: Plan, streamer: Streamer | None, begin: Callable[[], Sequences]) -> Tensor:
        """The ids of a plan, prompts and new ones; `begin` makes the sequences, whose time counts."""
        began = time.perf_counter()
        prompt, beams = plan.ids.shape[1], plan.options.num_beams
        if beams > 1 and streamer is not None:
            raise UserError("streamer: with beams nothing is certain before the end: expected num_beams=1")
        state = begin()
        if beams > 1:
            found = beam_search(state, plan)
            seconds = time.perf_counter() - began
            self.speed = Speed(found.shape[0] * (found.shape[1] - prompt), seconds, seconds)
            return found
        if streamer is not None:
            streamer.put(plan.ids.cpu())
        columns = []
        for tokens in self._timed(self._steps(state, plan), began):
            columns.append(tokens)
            if streamer is not None:
                streamer.put(tokens.cpu())
        if streamer is not None:
            streamer.end()
        return torch.cat([plan.ids, torch.stack(columns, 1)], 1)

    def _steps(self, state: Sequences, plan: Plan) -> Iterator[Tensor]:
        """New tokens (rows,) of a plan without beams, one after the other."""
        return sample(state, plan)

    def _timed(self, steps: Iterator[Tensor], began: float) -> Iterator[Tensor]:
        first, count = 0.0, 0
        for tokens in steps:
            now = time.perf_counter() - began
            first, count = first or now, count + len(tokens)
            self.speed = Speed(count, first, now)
            yield tokens
