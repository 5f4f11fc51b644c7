"""The hypotheses of a beam search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.ops.decode.choice import unavailable
from aigc_fast.runtime import native

# Below any sum of logarithms of probabilities.
_WORST = -1.0e9


class Hypotheses:
    """Of each prompt those that are followed, and those that ended.

    Args:
        ids: (prompts * beams, length), int64: each prompt as often as there are beams.
        beams: of each prompt.
        longest: ids in all.
        ends: ids that end a hypothesis.
        filling: the id that stands where a hypothesis has none.
        length_penalty: the power of the length by which a hypothesis' score is divided.
        early_stopping: whether to stop once as many ended as there are beams; "never" goes on for as long as one that
            is followed may become better, whatever its length.

    Attributes:
        running, ended: (prompts, beams, longest), int64; the best first.
        running_scores, scores: (prompts, beams), float32: of both, the latter divided.
        is_ended: (prompts, beams), bool: whether there is an ended one.
        lengths: (prompts, beams), int64: ids of those that ended, beyond the prompt.
        origins: (2, prompts * beams), int64: of each that is followed the row that it comes from, and its last id.
        count: ids that all have that are followed.
        kept: continuations of each prompt that `advance` takes.
    """

    def __init__(
        self,
        ids: Tensor,
        beams: int,
        longest: int,
        ends: Sequence[int],
        filling: int,
        length_penalty: float,
        early_stopping: bool | str,
    ) -> None:
        prompts, device = ids.shape[0] // beams, ids.device
        self.beams, self.prompt, self.longest, self.count = beams, ids.shape[1], longest, ids.shape[1]
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.kept = max(2, 1 + len(ends)) * beams
        self.running = torch.full((prompts, beams, longest), filling, device=device)
        self.running[:, :, : self.prompt] = ids.view(prompts, beams, -1)
        self.ended = self.running.clone()
        self.running_scores = torch.zeros(prompts, beams, device=device)
        # All beams start equal: only the first is considered.
        self.running_scores[:, 1:] = _WORST
        self.scores = torch.full((prompts, beams), _WORST, device=device)
        self.is_ended = torch.zeros(prompts, beams, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(prompts, beams, dtype=torch.int64, device=device)
        self.origins = torch.zeros(2, prompts * beams, dtype=torch.int64, device=device)
        self._may_improve = torch.ones(prompts, 1, dtype=torch.bool, device=device)
        self._ends = torch.tensor(ends, dtype=torch.int64, device=device)
        self._first = torch.arange(0, prompts * beams, beams, device=device)[:, None]

    def advance(self, best: Tensor, places: Tensor, vocabulary: int) -> bool:
        """Takes continuations by one id.

        Args:
            best: (prompts, kept), float32: the sums of the logarithms of their probabilities, the greatest first.
            places: (prompts, kept), int64: where they are among a prompt's beams * vocabulary.
            vocabulary: of so many ids.

        Returns:
            Whether there is more to be done.
        """
        length, at_most = self.count + 1 - self.prompt, self.early_stopping == "never" and self.length_penalty > 0
        reach = self.longest - self.prompt if at_most else length
        divisors = length**self.length_penalty, reach**self.length_penalty
        is_native = best.is_cpu and best.dtype == torch.float32 and unavailable() is None
        goes_on = (self._by_kernel if is_native else self._by_torch)(best, places, vocabulary, length, *divisors)
        self.count += 1
        return goes_on

    def _by_kernel(
        self, best: Tensor, places: Tensor, vocabulary: int, length: int, divisor: float, bound_divisor: float
    ) -> bool:
        kept = self.running, self.ended, self.lengths, self.running_scores, self.scores, self.is_ended
        given = [*kept, self._may_improve], [best.contiguous(), places.contiguous(), self._ends], self.origins
        stops_when_full = int(self.early_stopping is True)
        numbers = vocabulary, self.count, length, stops_when_full, divisor, bound_divisor
        return bool(native.kernels().decode_advance(*given, *numbers))

    def _by_torch(
        self, best: Tensor, places: Tensor, vocabulary: int, length: int, divisor: float, bound_divisor: float
    ) -> bool:
        parents, tokens = places // vocabulary, places % vocabulary
        sequences = _taken(self.running, parents)
        sequences[:, :, self.count] = tokens
        hits = torch.isin(tokens, self._ends) | (self.count + 1 >= self.longest)
        running = best + hits.float() * _WORST
        chosen = running.topk(self.beams).indices
        self.running, self.running_scores = _taken(sequences, chosen), running.gather(1, chosen)
        self.origins = torch.stack([parents.gather(1, chosen) + self._first, tokens.gather(1, chosen)]).flatten(1)
        self._keep(sequences, best / divisor, hits, length)
        # Whether running hypotheses can still become better than those that ended.
        worst = torch.where(self.is_ended, self.scores.amin(1, keepdim=True), _WORST)
        self._may_improve &= (self.running_scores[:, :1] / bound_divisor > worst).any(1, keepdim=True)
        is_full = self.early_stopping is True and bool(self.is_ended.all())
        return bool(self._may_improve.any()) and not is_full and not bool(hits.all())

    def _keep(self, sequences: Tensor, scores: Tensor, hits: Tensor, length: int) -> None:
        """Keeps the best of the hypotheses that ended before and now."""
        just_ended = hits & (torch.arange(self.kept, device=hits.device) < self.beams)
        is_full = self.is_ended.all(1, keepdim=True) & (self.early_stopping is True)
        for is_out in (is_full, ~self._may_improve, ~just_ended):
            scores = scores + is_out.float() * _WORST
        scores = torch.cat([self.scores, scores], 1)
        chosen = scores.topk(self.beams).indices
        lengths = torch.cat([self.lengths, torch.full_like(hits, length, dtype=torch.int64)], 1)
        self.ended = _taken(torch.cat([self.ended, sequences], 1), chosen)
        self.scores, self.lengths = scores.gather(1, chosen), lengths.gather(1, chosen)
        self.is_ended = torch.cat([self.is_ended, just_ended], 1).gather(1, chosen)


def _taken(sequences: Tensor, places: Tensor) -> Tensor:
    return sequences.take_along_dim(places[:, :, None], 1)
