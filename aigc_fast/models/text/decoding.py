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
from aigc_fast.ops.decode.lookup import MOST_GUESSED, Lookup

# Below any sum of logarithms of probabilities.
_WORST = -1.0e9
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


class _Beams:
    """The hypotheses of a beam search: those that are followed, and those that ended."""

    def __init__(self, plan: Plan, rows: int, beams: int) -> None:
        options, device = plan.options, plan.ids.device
        self.plan, self.beams, self.prompt = plan, beams, plan.ids.shape[1]
        # transformers fills with the end where padding is 0.
        filling = (options.padding or options.ends[0]) if options.ends else -1
        self.running = torch.full((rows, beams, plan.longest), filling, device=device)
        self.running[:, :, : self.prompt] = plan.ids.view(rows, beams, -1)
        self.ended = self.running.clone()
        self.running_scores = torch.zeros(rows, beams, device=device)
        # All begin alike: only the first is looked at.
        self.running_scores[:, 1:] = _WORST
        self.scores = torch.full((rows, beams), _WORST, device=device)
        self.is_ended = torch.zeros(rows, beams, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows, beams, dtype=torch.int64, device=device)
        self.may_improve = torch.ones(rows, 1, dtype=torch.bool, device=device)
        self.ends = torch.tensor(options.ends, dtype=torch.int64, device=device)
        self.kept = max(2, 1 + len(options.ends)) * beams
        self.count = self.prompt

    def continuations(self, logits: Tensor, processors: Sequence[Processor]) -> tuple[Tensor, Tensor]:
        """The best of them, (rows, kept), or some that are drawn: log-probabilities of all tokens, and their places.

        Args:
            logits: (rows * beams, vocabulary), of the next tokens; overwritten.
            processors: of the logarithms of their probabilities.
        """
        ids = self.running[:, :, : self.count].flatten(0, 1)
        only_bans = all(type(each) in (Never, NoRepeatedNGram) for each in processors)
        if only_bans and logits.is_cpu and not self.plan.options.do_sample:
            banned = [torch.stack(each.banned(ids)) for each in processors]
            return best_continuations(logits, self.running_scores, self.kept, torch.cat([_NO_BANS, *banned], 1))
        sums = processed(processors, ids, logits.log_softmax(-1)).view(len(self.running), self.beams, -1)
        return self._best((sums + self.running_scores[:, :, None]).flatten(1))

    def advance(self, best: Tensor, places: Tensor, vocabulary: int) -> tuple[Tensor, bool]:
        """Takes continuations.

        Args:
            best, places: see `continuations`.
            vocabulary: of so many tokens.

        Returns:
            (rows, beams), the beams that the running ones come from; and whether there is more to be done.
        """
        parents, tokens = places // vocabulary, places % vocabulary
        sequences = _taken(self.running, parents)
        sequences[:, :, self.count] = tokens
        hits = torch.isin(tokens, self.ends) | (self.count + 1 >= self.plan.longest)
        running = best + hits.float() * _WORST
        chosen = running.topk(self.beams).indices
        self.running, self.running_scores = _taken(sequences, chosen), running.gather(1, chosen)
        self._keep(sequences, best, hits)
        self.count += 1
        self._look_ahead()
        options = self.plan.options
        is_full = bool(self.is_ended.all()) and options.early_stopping is True
        return parents.gather(1, chosen), bool(self.may_improve.any()) and not is_full and not bool(hits.all())

    def _best(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        if not self.plan.options.do_sample:
            return tuple(sums.topk(self.kept))
        places = self.plan.draw(sums, self.kept)
        best, order = sums.gather(1, places).sort(descending=True)
        return best, places.gather(1, order)

    def _keep(self, sequences: Tensor, sums: Tensor, hits: Tensor) -> None:
        """Keeps the best of the hypotheses that ended before and now."""
        options, length = self.plan.options, self.count + 1 - self.prompt
        just_ended = hits & (torch.arange(self.kept, device=hits.device) < self.beams)
        scores = sums / length**options.length_penalty
        is_full = self.is_ended.all(1, keepdim=True) & (options.early_stopping is True)
        for is_out in (is_full, ~self.may_improve, ~just_ended):
            scores = scores + is_out.float() * _WORST
        scores = torch.cat([self.scores, scores], 1)
        chosen = scores.topk(self.beams).indices
        lengths = torch.cat([self.lengths, torch.full_like(hits, length, dtype=torch.int64)], 1)
        self.ended = _taken(torch.cat([self.ended, sequences], 1), chosen)
        self.scores, self.lengths = scores.gather(1, chosen), lengths.gather(1, chosen)
        self.is_ended = torch.cat([self.is_ended, just_ended], 1).gather(1, chosen)

    def _look_ahead(self) -> None:
        """Whether running hypotheses may yet become better than those that ended."""
        options = self.plan.options
        at_most = options.early_stopping == "never" and options.length_penalty > 0
        length = (self.plan.longest if at_most else self.count) - self.prompt
        best = self.running_scores[:, :1] / length**options.length_penalty
        worst = torch.where(self.is_ended, self.scores.amin(1, keepdim=True), _WORST)
        self.may_improve = self.may_improve & (best > worst).any(1, keepdim=True)


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
    beams = plan.options.num_beams
    found = _Beams(plan, plan.ids.shape[0] // beams, beams)
    first = torch.arange(0, plan.ids.shape[0], beams, device=plan.ids.device)[:, None]
    while True:
        parents, goes_on = found.advance(*found.continuations(logits, processors), logits.shape[-1])
        if not goes_on:
            break
        state.reorder((parents + first).flatten())
        positions = positions + 1
        logits = state.step(found.running[:, :, found.count - 1].flatten(), positions)
    wanted = plan.options.num_return_sequences
    longest = int(found.lengths[:, :wanted].max())
    return found.ended[:, :wanted, : found.prompt + longest].flatten(0, 1)


def _taken(sequences: Tensor, places: Tensor) -> Tensor:
    return sequences.take_along_dim(places[:, :, None], 1)
