"""What models share that decode with transformers' options: how ids are checked, found, streamed and timed."""

from __future__ import annotations

import functools
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.models.base import evaluating
from aigc_fast.models.text.base import TokenModel
from aigc_fast.models.text.decoding import Plan, Sequences, beam_search, look_up, sample
from aigc_fast.ops.decode.choice import backend_on, check, wanted_on
from aigc_fast.ops.decode.engine import MOST_GREEDY, Engine, default_weights
from aigc_fast.ops.decode.keeping import engine_of
from aigc_fast.ops.decode.reading import Refused, check_modules
from aigc_fast.ops.decode.spec import Spec
from aigc_fast.runtime.weights import check_weights

log = logging.getLogger("aigc_fast")


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
        if self.tokens == 1:
            return f"1 token after {self.first:.2f} s"
        return f"{self.tokens} tokens, {self.tokens_per_second:.0f} tokens/s, the first after {self.first:.2f} s"


class Way(NamedTuple):
    """How a model generates.

    Attributes:
        loop: "steps", "steps without most of the head", "prompt lookup" or "beams".
        weights: how the engine keeps them; None where it does not run.
        reason: why it does not, or None.
        backend: whose engine it is, or would be.
    """

    loop: str
    weights: str | None
    reason: str | None
    backend: str = "cpu"

    def __str__(self) -> str:
        whose = "the engine" if self.backend == "cpu" else "the CUDA engine"
        where = f"{whose}, {self.weights} weights" if self.reason is None else f"plain PyTorch: {self.reason}"
        return f"{self.loop} on {where}"


STEPS, GREEDY, LOOKUP, BEAMS = "steps", "steps without most of the head", "prompt lookup", "beams"


class Decoding(TokenModel):
    """A model that decodes by a `Plan`, on the native engine where that runs.

    Attributes:
        vocab_size: of the embedding.
        weights: how the engine keeps the weights: "fp32", "bf16", "int8" or "int4"; None for as they are.
        speed: of what was generated last, or None.
        way: how that was generated, or None.
    """

    vocab_size: int
    weights: str | None = None
    speed: Speed | None = None
    way: Way | None = None

    @abstractmethod
    def spec(self) -> Spec:
        """The model as the engine reads it.

        Raises:
            Refused: where parts of it are not as they were built.
        """

    def _engine(self, plan: Plan, weights: str | None = None) -> Engine | None:
        """The engine of a plan, which keeps the weights so; None where it does not run."""
        spec, self.way = self._way(plan, weights)
        if spec is None:
            _say_once(self.name, self.way.reason)
            return None
        engine = engine_of(self, spec, self.way.weights, plan.longest)
        if self.way.loop == GREEDY and not engine.certify(spec):
            self.way = self.way._replace(loop=STEPS)
        return engine

    def _engine_or_none(self, steps: int, release: Callable[[Tensor], None] | None = None) -> Engine | None:
        """The engine for so many steps; None where it does not run. `release`: see `Engine`."""
        spec = self._spec_or_reason(self.weights)
        if isinstance(spec, str):
            _say_once(self.name, spec)
            return None
        return engine_of(self, spec, self.weights or default_weights(spec), steps, release)

    def _way(self, plan: Plan, weights: str | None = None) -> tuple[Spec | None, Way]:
        weights, options = weights or self.weights, plan.options
        spec = self._spec_or_reason(weights)
        if isinstance(spec, str):
            return None, Way(BEAMS if options.num_beams > 1 else STEPS, None, spec, wanted_on(self.device))
        weights = weights or default_weights(spec)
        if (backend := backend_on(self.device, weights)) == "cuda":
            return spec, Way(BEAMS if options.num_beams > 1 else STEPS, weights, None, backend)
        if options.num_beams > 1:
            return spec, Way(BEAMS, weights, None)
        if options.prompt_lookup_num_tokens is not None:
            return spec, Way(LOOKUP, weights, None)
        is_sure = options.certified_head and weights == "fp32" and spec.head.bias is None
        is_greedy = is_sure and plan.ids.shape[0] <= MOST_GREEDY and plan.bans() is not None
        return spec, Way(GREEDY if is_greedy else STEPS, weights, None)

    def _spec_or_reason(self, weights: str | None) -> Spec | str:
        """The model as the engine reads it that keeps the weights so, or why it does not run."""
        try:
            backend = backend_on(self.device, weights)
            check_modules(self)
            spec = self.spec()
            check(spec, backend)
            if len({tensor.dtype for tensor in spec.tensors() if tensor is not spec.frequencies}) > 1:
                raise Refused("its weights are of several dtypes")
        except Refused as refused:
            return str(refused)
        return spec

    def keep_weights(self, weights: str | None) -> None:
        """Says how the engine keeps the weights; the parameters stay what they are.

        Args:
            weights: "fp32", "bf16", "int8" or "int4"; None as they are.

        Raises:
            UserError: if the engine does not run, which is what keeps them.
        """
        check_weights(weights)
        with evaluating(self):
            reason = self._spec_or_reason(weights)
        if weights is not None and isinstance(reason, str):
            raise UserError(f"weights={weights!r}: {self.name} generates in plain PyTorch: {reason}")
        self.weights = weights

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
            raise UserError("streamer: tokens of beams are not final before the end: expected num_beams=1")
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
        if self.way.loop == LOOKUP:
            return look_up(state, plan)
        return sample(state, plan, plan.bans() if self.way.loop == GREEDY else None)

    def _timed(self, steps: Iterator[Tensor], began: float) -> Iterator[Tensor]:
        first, count = 0.0, 0
        for tokens in steps:
            now = time.perf_counter() - began
            first, count = first or now, count + len(tokens)
            self.speed = Speed(count, first, now)
            yield tokens


@functools.cache
def _say_once(name: str, reason: str) -> None:
    log.warning("%s generates in plain PyTorch: %s", name, reason)
