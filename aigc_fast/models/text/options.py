"""How a decoder generates, by transformers' names; and what is done to scores before a token is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from aigc_fast.errors import UserError

Processor = Callable[[Tensor, Tensor], Tensor]
"""Takes ids (rows, length) and scores (rows, vocabulary), and returns scores."""

_NEVER = float("-inf")
_NEW_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `DecoderModel.generate`, with transformers' names, defaults and meanings.

    Attributes:
        max_length: of the ids in all, prompt and new ones.
        max_new_tokens: of the new ones; it goes before `max_length`. By default 20.
        min_length: of the ids in all.
        min_new_tokens: of the new ones; it goes before `min_length`.
        do_sample: draws tokens; otherwise the most probable ones are taken.
        temperature: divides the scores, where tokens are drawn.
        top_k: of how many of the most probable tokens one is drawn, and of those that equal the least of them; 0 of
            all.
        top_p: one is drawn of the fewest most probable tokens whose probabilities sum up to this, of equals those that
            `torch.sort` puts last, as in transformers.
        min_p: tokens are left out that are less probable than this share of the most probable one.
        repetition_penalty: divides the scores of tokens that are there already, or multiplies negative ones.
        no_repeat_ngram_size: no n-gram of this size comes twice; 0 for no such rule.
        num_beams: sequences that are followed side by side.
        early_stopping: of beams: True stops when there are enough of them, False when better ones are unlikely,
            "never" when they are impossible.
        length_penalty: of beams: the power of the length by which the score is divided.
        num_return_sequences: for each prompt.
        eos_token_id: what ends a sequence; several, or none, as a list.
        pad_token_id: what fills rows that ended sooner; by default the first of `eos_token_id`.
        bad_words_ids: sequences of tokens that never come up.
        suppress_tokens: tokens that never come up.
        begin_suppress_tokens: tokens that are never the first.
        prompt_lookup_num_tokens: how many tokens, at most, are guessed from what followed the last ones before, and
            verified together, of one sequence and without beams; the ids are the same. None guesses nothing.
        certified_head: whether the most probable token may be found without most of the head's weights, where it is
            certain; not in transformers. The ids are the same, and an int8 form of the head is kept besides.

    Raises:
        UserError: for a value out of range, or options that contradict each other.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    prompt_lookup_num_tokens: int | None = None
    certified_head: bool = True

    def __post_init__(self) -> None:
        for names, holds, expected in _RULES:
            for name in names:
                value = getattr(self, name)
                if not (value is None and getattr(type(self), name) is None) and not holds(value):
                    raise UserError(f"{name}={value!r}: expected {expected}")
        if self.num_return_sequences > 1 and not self.do_sample and self.num_return_sequences > self.num_beams:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences}: expected at most num_beams={self.num_beams}, "
                "or do_sample=True"
            )
        if self.prompt_lookup_num_tokens is not None and max(self.num_beams, self.num_return_sequences) > 1:
            raise UserError(
                f"prompt_lookup_num_tokens={self.prompt_lookup_num_tokens}: expected num_beams=1 and "
                f"num_return_sequences=1, got {self.num_beams} and {self.num_return_sequences}"
            )
        if self.num_return_sequences > self.num_beams > 1:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences}: expected at most num_beams={self.num_beams}"
            )

    @property
    def ends(self) -> list[int]:
        """The tokens that end a sequence."""
        found = self.eos_token_id
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    @property
    def padding(self) -> int | None:
        """What fills rows that ended sooner."""
        return self.pad_token_id if self.pad_token_id is not None or not self.ends else self.ends[0]

    def longest(self, prompt: int, context: int) -> int:
        """How many ids there are at most, of a prompt of so many.

        Raises:
            UserError: if there is no room for a new one.
        """
        if self.max_new_tokens is not None:
            return prompt + self.max_new_tokens
        if self.max_length is None:
            return max(prompt + 1, min(prompt + _NEW_TOKENS, context))
        if self.max_length <= prompt:
            raise UserError(
                f"max_length={self.max_length}: expected more than the {prompt} tokens of the prompt, or max_new_tokens"
            )
        return self.max_length

    def processors(self, given: Sequence[Processor], prompt: int, hidden: Tensor | None) -> list[Processor]:
        """What is done to scores, in transformers' order.

        Args:
            given: the caller's own.
            prompt: how many tokens the prompt has.
            hidden: (rows,), how many of each row's first tokens are padding; None of none.
        """
        least = self.min_length if self.min_new_tokens is None else prompt + self.min_new_tokens
        found = [
            (self.repetition_penalty != 1, RepetitionPenalty(self.repetition_penalty, hidden)),
            (self.no_repeat_ngram_size > 0, NoRepeatedNGram(self.no_repeat_ngram_size)),
            (self.bad_words_ids is not None, BadWords(self.bad_words_ids or (), self.ends)),
            (bool(self.ends) and least > 0, Never(self.ends, 0, least)),
            (self.suppress_tokens is not None, Never(self.suppress_tokens or (), 0, None)),
            (self.begin_suppress_tokens is not None, Never(self.begin_suppress_tokens or (), prompt, prompt + 1)),
        ]
        return [processor for is_wanted, processor in found if is_wanted] + list(given) + self._warpers()

    def _warpers(self) -> list[Processor]:
        if not self.do_sample:
            return []
        kept = 1 if self.num_beams == 1 else len(self.ends) + 1 if self.ends else 2
        found: list[Processor] = []
        if self.temperature != 1:
            found.append(lambda ids, scores: scores / self.temperature)
        if self.top_k:
            found.append(lambda ids, scores: top_k(scores, max(self.top_k, kept)))
        if self.top_p < 1:
            found.append(lambda ids, scores: top_p(scores, self.top_p, kept))
        if self.min_p is not None:
            found.append(lambda ids, scores: min_p(scores, self.min_p, kept))
        return found


def _integer(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(least: float, most: float, above: bool = False) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (least < value if above else least <= value) and value <= most and math.isfinite(value)

    return holds


def _tokens(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_integer(0), value))


_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("max_length", "max_new_tokens", "num_beams", "num_return_sequences"), _integer(1), "1 or more"),
    (("min_length", "min_new_tokens", "no_repeat_ngram_size"), _integer(0), "0 or more"),
    (("top_k",), _integer(0), "1 or more tokens, or 0 for all"),
    (("pad_token_id",), _integer(0), "a token"),
    (("temperature", "repetition_penalty"), _number(0, math.inf, above=True), "a number above 0"),
    (("top_p",), _number(0, 1, above=True), "a number above 0, at most 1"),
    (("min_p",), _number(0, 1), "a number of 0 to 1"),
    (("length_penalty",), _number(-math.inf, math.inf), "a number"),
    (("prompt_lookup_num_tokens",), _integer(1), "1 or more tokens"),
    (("do_sample", "certified_head"), lambda value: isinstance(value, bool), "True or False"),
    (("early_stopping",), lambda value: isinstance(value, bool) or value == "never", 'True, False or "never"'),
    (("eos_token_id",), lambda value: _integer(0)(value) or _tokens(value), "a token, or a list of them"),
    (("suppress_tokens", "begin_suppress_tokens"), _tokens, "a list of tokens"),
    (
        ("bad_words_ids",),
        lambda value: isinstance(value, Sequence) and all(_tokens(word) and len(word) for word in value),
        "lists of tokens, none of them empty",
    ),
)
KNOWN = tuple(field.name for field in fields(Options))
# What a configuration may say besides that changes no ids, or is of no use here; anything else would.
_WITHOUT_EFFECT = {
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "diversity_penalty": (0.0,),
    "num_beam_groups": (1,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "stop_strings": (),
    "max_time": (),
    "top_h": (),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
}


def options_of(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    """The options of a call.

    Args:
        defaults: the model's, which may say more than `Options` knows.
        given: the call's; None stands for the default.

    Raises:
        UserError: for options that are unknown, or out of range.
    """
    for name, value in defaults.items():
        if value is not None and name in _WITHOUT_EFFECT and value not in _WITHOUT_EFFECT[name]:
            raise UserError(f"generation config: {name}={value!r} is not supported")
    if unknown := [name for name in given if name not in KNOWN]:
        raise UserError(f"{unknown[0]}: no such option: expected some of {', '.join(KNOWN)}")
    found = {name: value for name, value in defaults.items() if name in KNOWN and value is not None}
    return Options(**found | {name: value for name, value in given.items() if value is not None})


class RepetitionPenalty:
    """Makes tokens less probable that are there already; padding at the left does not count.

    Keskar et al., "CTRL: a conditional transformer language model for controllable generation", 2019.
    """

    def __init__(self, penalty: float, hidden: Tensor | None) -> None:
        self.penalty, self.hidden = penalty, hidden

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        vocabulary = scores.shape[-1]
        if self.hidden is not None:
            places = torch.arange(ids.shape[1], device=ids.device)
            ids = ids.masked_fill(places < self.hidden[:, None], vocabulary)
        wide = torch.nn.functional.pad(scores, (0, 1))
        found = wide.gather(1, ids)
        found = torch.where(found < 0, found * self.penalty, found / self.penalty)
        return wide.scatter(1, ids, found)[:, :vocabulary]


_NONE = torch.empty(0, dtype=torch.int64)


class NoRepeatedNGram:
    """Excludes tokens that would end an n-gram that is there already."""

    def __init__(self, size: int) -> None:
        self.size = size

    def banned(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and tokens that are excluded after so many ids, some of them several times."""
        length = ids.shape[1]
        if length < self.size:
            return _NONE, _NONE
        grams = ids.unfold(1, self.size, 1)
        begins_alike = (grams[..., :-1] == ids[:, None, length + 1 - self.size :]).all(-1)
        rows, places = begins_alike.nonzero(as_tuple=True)
        return rows, ids[rows, places + self.size - 1]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        rows, tokens = self.banned(ids)
        if not len(rows):
            return scores
        found = scores.clone()
        found[rows, tokens] = _NEVER
        return found


class BadWords:
    """Excludes tokens that would complete a sequence."""

    def __init__(self, words: Sequence[Sequence[int]], ends: Sequence[int]) -> None:
        self.words = [list(word) for word in words if list(word) not in [[end] for end in ends]]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        found = scores.clone()
        for *before, last in self.words:
            if len(before) <= ids.shape[1]:
                tail = ids[:, ids.shape[1] - len(before) :]
                found[(tail == ids.new_tensor(before)).all(1), last] = _NEVER
        return found


class Never:
    """Excludes tokens while there are at least so many ids, and less than so many."""

    def __init__(self, tokens: Sequence[int], since: int, until: int | None) -> None:
        self.tokens, self.since, self.until = list(tokens), since, until

    def tokens_at(self, length: int) -> list[int]:
        """Those that are excluded where there are so many ids."""
        return [] if length < self.since or (self.until is not None and length >= self.until) else self.tokens

    def banned(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and tokens that are excluded after so many ids."""
        tokens = torch.tensor(self.tokens_at(ids.shape[1]), device=ids.device, dtype=torch.int64)
        if not len(tokens):
            return _NONE, _NONE
        rows = torch.arange(ids.shape[0], device=ids.device)
        return rows.repeat_interleave(len(tokens)), tokens.repeat(ids.shape[0])

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        tokens = torch.tensor(self.tokens_at(ids.shape[1]), device=scores.device, dtype=torch.int64)
        return scores.index_fill(1, tokens, _NEVER) if len(tokens) else scores


def top_k(scores: Tensor, count: int) -> Tensor:
    """The scores of so many of the greatest, and of those that equal the least of them; -inf for others."""
    least = scores.topk(min(count, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < least, _NEVER)


def top_p(scores: Tensor, mass: float, kept: int) -> Tensor:
    """The scores of the most probable tokens that have this probability together, `kept` at least; -inf for others."""
    ascending, order = scores.sort()
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - mass
    removed[:, -kept:] = False
    return scores.masked_fill(removed.scatter(1, order, removed), _NEVER)


def min_p(scores: Tensor, share: float, kept: int) -> Tensor:
    """The scores of tokens that have this share of the greatest probability, `kept` at least; -inf for others."""
    probabilities = scores.softmax(-1)
    removed = probabilities < share * probabilities.amax(-1, keepdim=True)
    removed.scatter_(1, probabilities.topk(min(kept, scores.shape[-1])).indices, False)
    return scores.masked_fill(removed, _NEVER)
