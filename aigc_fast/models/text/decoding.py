"""The loops that decode: one token after the other, drawn or the most probable one, and beams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aigc_fast.models.text.options import Never, NoRepeatedNGram, Options, Processor
from aigc_fast.ops.decode.candidates import best_continuations
from aigc_fast.ops.decode.engine import State
from aigc_fast.ops.decode.hypotheses import Hypotheses
from aigc_fast.ops.decode.lookup import MOST_GUESSED, Lookup

_NO_BANS = torch.empty(2, 0, dtype=torch.int64)


class Sequences(Protocol):
    """Sequences that grow together: the native engine's `State`, or PyTorch's.

    Attributes:
        length: tokens that each has been given.
    """

    length: int

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The logits (slots, vocabulary) after one more token of each sequence."""

    def extend(self, ids: Tensor, positions: Tensor, visible: Tensor | None, keep: int) -> Tensor:
        """The logits (slots, keep, vocabulary) after some more tokens of each sequence."""

    def reorder(self, parents: Tensor) -> None:
        """Lets every sequence go on from what another one has seen."""


@dataclass(frozen=True)
class Plan:
    """What is to be decoded, and how.

    Attributes:
        ids: int64 (rows, length), the prompts.
        visible: bool (rows, length), which of them are no padding; None for all.
        longest: ids in all.
        options: how.
        given: the caller's own processors.
        generator: of draws; None for PyTorch's default one.
    """

    ids: Tensor
    visible: Tensor | None
    longest: int
    options: Options
    given: Sequence[Processor] = ()
    generator: torch.Generator | None = None

    def processors(self) -> list[Processor]:
        """What is done to scores."""
        hidden = None if self.visible is None else self.visible.int().argmax(1)
        return self.options.processors(self.given, self.ids.shape[1], hidden)

    def bans(self) -> Callable[[int], Tensor] | None:
        """Which tokens are out of question where there are so many ids; None where more is done to the scores than to
        take the greatest of the others."""
        processors = self.processors()
        if self.options.do_sample or any(type(each) is not Never for each in processors):
            return None
        return lambda length: torch.tensor([token for each in processors for token in each.tokens_at(length)]).long()

    def begin(self, state: Sequences) -> tuple[Tensor, Tensor]:
        """The logits after the prompts, and the positions of their last tokens."""
        seen = torch.ones_like(self.ids) if self.visible is None else self.visible.long()
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        return state.extend(self.ids, positions, self.visible, 1)[:, 0], positions[:, -1].clone()

    def next(self, scores: Tensor) -> Tensor:
        """(rows,), the next token of each row, drawn or the most probable one."""
        return self.draw(scores, 1)[:, 0] if self.options.do_sample else scores.argmax(-1)

    def draw(self, scores: Tensor, count: int) -> Tensor:
        """So many tokens, none twice, by the probabilities that the scores stand for."""
        probabilities = scores.softmax(-1)
        if self.generator is None:
            return torch.multinomial(probabilities, count)
        found = torch.multinomial(probabilities.to(self.generator.device), count, generator=self.generator)
        return found.to(scores.device)


def processed(processors: Sequence[Processor], ids: Tensor, scores: Tensor) -> Tensor:
    """The scores after all processors, one after the other."""
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def sample(state: Sequences, plan: Plan, bans: Callable[[int], Tensor] | None = None) -> Iterator[Tensor]:
    """Tokens one after the other, drawn or the most probable ones.

    Args:
        state: as many sequences as the plan has rows, which have no tokens yet.
        plan: what is wanted, `num_beams` apart.
        bans: the plan's, where the state finds the most probable tokens without logits.

    Yields:
        int64 (rows,), padding in rows that ended; until all have, or there are as many as wanted.
    """
    options, processors = plan.options, plan.processors()
    rows, count = plan.ids.shape
    ids = plan.ids.new_empty(rows, plan.longest)
    ids[:, :count] = plan.ids
    ends = torch.tensor(options.ends, dtype=torch.int64, device=ids.device)
    going = torch.ones(rows, dtype=torch.bool, device=ids.device)
    logits, positions = plan.begin(state)
    tokens = None
    while True:
        if tokens is None:
            tokens = plan.next(processed(processors, ids[:, :count], logits))
        if len(ends):
            tokens = tokens.where(going, options.padding)
            going &= ~torch.isin(tokens, ends)
        ids[:, count] = tokens
        count += 1
        yield tokens
        if count == plan.longest or not going.any():
            return
        positions += 1
        last, tokens = tokens, None if bans is None else state.greedy(tokens, positions, bans(count))
        if tokens is None:
            logits = state.step(last, positions)


def look_up(state: State, plan: Plan) -> Iterator[Tensor]:
    """The same for one sequence, some tokens of which are guessed: as many steps' tokens from one reading of the
    weights as the guess was right for.

    Args:
        state: one sequence, which has no tokens yet.
        plan: what is wanted.

    Yields:
        int64 (1,).
    """
    options, processors = plan.options, plan.processors()
    prompt = count = plan.ids.shape[1]
    ids = plan.ids.new_empty(1, plan.longest)
    ids[:, :count] = plan.ids
    lookup, guess = Lookup(plan.ids[0].tolist()), []
    logits, last = plan.begin(state)
    while True:
        for row, guessed in zip(logits.split(1), [*guess, None], strict=True):
            tokens = plan.next(processed(processors, ids[:, :count], row))
            token = int(tokens)
            ids[:, count] = tokens
            lookup.add(token)
            count += 1
            yield tokens
            if count == plan.longest or token in options.ends:
                return
            if token != guessed:
                break
        # The last token was not read yet, and what was guessed wrong is forgotten.
        state.crop(count - 1)
        most = min(options.prompt_lookup_num_tokens, MOST_GUESSED)
        guess = lookup.following(min(most, plan.longest - count - 1))
        read = torch.tensor([[token, *guess]])
        positions = last + torch.arange(count - prompt, count - prompt + read.shape[1])
        logits = state.extend(read, positions[None], None, read.shape[1])[0]


def _continuations(
    found: Hypotheses, plan: Plan, logits: Tensor, processors: Sequence[Processor]
) -> tuple[Tensor, Tensor]:
    """The best of them, (prompts, kept), or some that are drawn: log-probabilities of all tokens, and their places.

    Args:
        found: what they continue.
        plan: what is wanted.
        logits: (prompts * beams, vocabulary), of the next tokens; overwritten.
        processors: of the logarithms of their probabilities.
    """
    ids = found.running[:, :, : found.count].flatten(0, 1) if processors else None
    only_bans = all(type(each) in (Never, NoRepeatedNGram) for each in processors)
    if only_bans and logits.is_cpu and not plan.options.do_sample:
        banned = torch.cat([torch.stack(each.banned(ids)) for each in processors], 1) if processors else _NO_BANS
        return best_continuations(logits, found.running_scores, found.kept, banned)
    sums = processed(processors, ids, logits.log_softmax(-1)).view(*found.running_scores.shape, -1)
    sums = (sums + found.running_scores[:, :, None]).flatten(1)
    if not plan.options.do_sample:
        return tuple(sums.topk(found.kept))
    places = plan.draw(sums, found.kept)
    best, order = sums.gather(1, places).sort(descending=True)
    return best, places.gather(1, order)


def beam_search(state: Sequences, plan: Plan) -> Tensor:
    """The best of several hypotheses that are followed side by side.

    Args:
        state: `num_beams` sequences for each prompt, which have no tokens yet.
        plan: what is wanted; each prompt as often as there are beams.

    Returns:
        int64 (prompts * num_return_sequences, length), the best first, filled up at the right.
    """
    logits, positions = plan.begin(state)
    return search_on(state, plan, logits, positions, plan.processors())


def search_on(
    state: Sequences, plan: Plan, logits: Tensor, positions: Tensor, processors: Sequence[Processor]
) -> Tensor:
    """The same of sequences that have their prompts.

    Args:
        state, plan: see `beam_search`.
        logits: (rows, vocabulary), after the prompts; overwritten.
        positions: (rows,), int64, of the prompts' last tokens.
        processors: of the logarithms of probabilities.
    """
    options = plan.options
    # transformers fills with the end where padding is 0.
    filling = (options.padding or options.ends[0]) if options.ends else -1
    penalties = options.length_penalty, options.early_stopping
    found = Hypotheses(plan.ids, options.num_beams, plan.longest, options.ends, filling, *penalties)
    while found.advance(*_continuations(found, plan, logits, processors), logits.shape[-1]):
        parents, tokens = found.origins
        state.reorder(parents)
        positions = positions + 1
        logits = state.step(tokens, positions)
    wanted = options.num_return_sequences
    longest = int(found.lengths[:, :wanted].max())
    return found.ended[:, :wanted, : found.prompt + longest].flatten(0, 1)
