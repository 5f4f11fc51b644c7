"""Our loops of decoding in place of transformers', and where nobody can tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin, logits_process
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from aigc_fast.errors import UserError
from aigc_fast.integrations.transformers_cache import CACHE, fill_cache, visible_of
from aigc_fast.models.text.decoding import Plan, search_on
from aigc_fast.models.text.options import Never, NoRepeatedNGram, Options
from aigc_fast.ops.decode.engine import Engine, State
from aigc_fast.ops.decode.lookup import MOST_GUESSED, Lookup

_OTHER_CRITERIA = EosTokenCriteria, MaxTimeCriteria, StopStringCriteria
_NO_TOKENS = torch.empty(0, dtype=torch.int64)


def is_unwatched(kwargs: dict[str, Any]) -> bool:
    """Whether nobody looks into transformers' loop of one token after the other, so that ours can stand for it."""
    config, criteria, mask = kwargs["generation_config"], kwargs["stopping_criteria"], kwargs.get("attention_mask")
    if config.return_dict_in_generate or kwargs[CACHE].get_seq_length():
        return False
    if getattr(config, "prefill_chunk_size", None) is not None or (mask is not None and not mask[:, -1].all()):
        return False
    lengths = [each for each in criteria if type(each) is MaxLengthCriteria]
    if len(lengths) != 1 or any(type(each) not in (MaxLengthCriteria, *_OTHER_CRITERIA) for each in criteria):
        return False
    most = lengths[0].max_position_embeddings
    return most is None or lengths[0].max_length <= most  # transformers' loop says it


def knows_processors(kwargs: dict[str, Any]) -> bool:
    """Whether no processor is the user's own, who may count its calls or look at beams that we order differently."""
    return all(type(each).__module__ == logits_process.__name__ for each in kwargs["logits_processor"])


def looks_up_prompt(ids: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether candidates come from the prompt, and which ones changes no id."""
    config, generator = kwargs["generation_config"], kwargs.get("candidate_generator")
    from_prompt = generator is None or type(generator).__name__ == "PromptLookupCandidateGenerator"
    plain = kwargs.get("assistant_model") is None and from_prompt and not config.do_sample and ids.shape[0] == 1
    return bool(plain and getattr(config, "prompt_lookup_num_tokens", None))


def follows_beams(kwargs: dict[str, Any]) -> bool:
    """Whether our loop of beams does what this transformers' does; of those that are drawn, versions differ."""
    config = kwargs["generation_config"]
    if config.do_sample or getattr(config, "low_memory", None):
        return False
    known = hasattr(GenerationMixin, "_check_early_stop_heuristic") and _beam_options(config) is not None
    plain = all(type(each) in (MaxLengthCriteria, EosTokenCriteria) for each in kwargs["stopping_criteria"])
    return known and plain and getattr(kwargs[CACHE], "is_of_this_call", False)


def _beam_options(config: Any) -> Options | None:
    ends, padding = config._eos_token_tensor, config._pad_token_tensor
    try:
        return Options(
            num_beams=config.num_beams,
            early_stopping=config.early_stopping or False,
            length_penalty=config.length_penalty,
            num_return_sequences=config.num_return_sequences,
            eos_token_id=None if ends is None else ends.view(-1).tolist(),
            pad_token_id=None if padding is None else int(padding),
        )
    except (UserError, TypeError):
        return None


def _as_our_own(processor: Any) -> Any:
    """A processor of transformers, or one of ours that does the same and tells which tokens it excludes."""
    kind = type(processor)
    if kind is logits_process.NoRepeatNGramLogitsProcessor:
        return NoRepeatedNGram(processor.ngram_size)
    if kind is logits_process.MinLengthLogitsProcessor:
        return Never(processor.eos_token_id.view(-1).tolist(), 0, processor.min_length)
    if kind is logits_process.MinNewTokensLengthLogitsProcessor:
        least = processor.prompt_length_to_skip + processor.min_new_tokens
        return Never(processor.eos_token_id.view(-1).tolist(), 0, least)
    return processor


@torch.no_grad()
def beam_loop(engine: Engine, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """transformers' `_beam_search` for ids alone."""
    plan = Plan(ids, None, kwargs["stopping_criteria"].max_length, _beam_options(kwargs["generation_config"]))
    state, positions, logits = _begun(engine, ids, kwargs)
    return search_on(state, plan, logits, positions, list(map(_as_our_own, kwargs["logits_processor"])))


def _begun(engine: Engine, ids: Tensor, kwargs: dict[str, Any]) -> tuple[State, Tensor, Tensor]:
    """Sequences that have had their prompts, the last tokens' positions, and the logits after them."""
    rows, count = ids.shape
    visible, positions = visible_of(kwargs.get("attention_mask"), count), kwargs.get("position_ids")
    if positions is None:
        seen = torch.ones_like(ids) if visible is None else visible.long()
        positions = (seen.cumsum(1) - 1).clamp_min(0)
    state = engine.begin(rows)
    logits = state.extend(ids, positions.expand(rows, count), visible, 1)[:, 0]
    return state, positions[:, -1].clone(), logits


def _ended(model: nn.Module, state: State, found: Tensor, count: int, kwargs: dict[str, Any]) -> Tensor:
    """The ids that were found; a cache that the caller gave is filled."""
    given, streamer = kwargs[CACHE], kwargs.get("streamer")
    if not getattr(given, "is_of_this_call", False):
        fill_cache(state, given, model.dtype)
    if streamer is not None:
        streamer.end()
    return found[:, :count].clone() if count < found.shape[1] else found


def _room(ids: Tensor, most: int) -> Tensor:
    """The ids, and room for more of them."""
    found = ids.new_empty(ids.shape[0], max(most, ids.shape[1] + 1))
    found[:, : ids.shape[1]] = ids
    return found


def bans_of(kwargs: dict[str, Any]) -> Callable[[int], Tensor] | None:
    """Which tokens are out of question at a length, where nothing else is done to the logits of a greedy choice."""
    lengths = []
    for each in kwargs["logits_processor"]:
        if type(each) is logits_process.MinLengthLogitsProcessor:
            lengths.append((each.min_length, each.eos_token_id))
        elif type(each) is logits_process.MinNewTokensLengthLogitsProcessor:
            lengths.append((each.prompt_length_to_skip + each.min_new_tokens, each.eos_token_id))
        else:
            return None
    if kwargs["generation_config"].do_sample:
        return None
    return lambda length: torch.cat([_NO_TOKENS, *(tokens.view(-1) for least, tokens in lengths if length < least)])


@torch.no_grad()
def token_loop(
    model: nn.Module,
    engine: Engine,
    ids: Tensor,
    kwargs: dict[str, Any],
    bans: Callable[[int], Tensor] | None,
) -> Tensor:
    """transformers' `_sample` for ids alone; with `bans` without logits."""
    config, criteria, process = kwargs["generation_config"], kwargs["stopping_criteria"], kwargs["logits_processor"]
    others = [each for each in criteria if type(each) in _OTHER_CRITERIA]
    ends = any(type(each) is EosTokenCriteria for each in criteria)
    (rows, count), found, streamer = ids.shape, _room(ids, criteria.max_length), kwargs.get("streamer")
    unfinished = torch.ones(rows, dtype=torch.int64, device=ids.device)
    state, position, logits = _begun(engine, ids, kwargs)
    while True:
        if logits is not None:
            scores = process(found[:, :count], logits) if process else logits
            if config.do_sample:
                tokens = torch.multinomial(torch.softmax(scores, -1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
        if ends:
            tokens = tokens * unfinished + config._pad_token_tensor * (1 - unfinished)
        found[:, count] = tokens
        count += 1
        if streamer is not None:
            streamer.put(tokens.cpu())
        for each in others:
            unfinished = unfinished & ~each(found[:, :count], None)
        if count >= criteria.max_length or not unfinished.any():
            return _ended(model, state, found, count, kwargs)
        position += 1
        chosen = None if bans is None else state.greedy(tokens, position, bans(count))
        logits = state.step(tokens, position) if chosen is None else None
        tokens = tokens if chosen is None else chosen


@torch.no_grad()
def lookup_loop(model: nn.Module, engine: Engine, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """The same for one greedy sequence, some tokens of which are guessed: as many steps' ids from one reading of the
    weights as the guess was right for."""
    config, criteria, process = kwargs["generation_config"], kwargs["stopping_criteria"], kwargs["logits_processor"]
    others = [each for each in criteria if type(each) in _OTHER_CRITERIA]
    count, found, lookup = ids.shape[1], _room(ids, criteria.max_length), Lookup(ids[0].tolist())
    streamer = kwargs.get("streamer")
    most = min(config.prompt_lookup_num_tokens, MOST_GUESSED)
    state, position, logits = _begun(engine, ids, kwargs)
    guess: list[int] = []
    while True:
        for row, guessed in zip(logits.split(1), [*guess, None], strict=True):
            scores = process(found[:, :count], row) if process else row
            token = int(scores.argmax())
            found[0, count] = token
            lookup.add(token)
            count += 1
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            if count >= criteria.max_length or any(each(found[:, :count], None).any() for each in others):
                state.crop(min(state.length, count - 1))
                return _ended(model, state, found, count, kwargs)
            if token != guessed:
                break
        # The last token was not read yet, and what was guessed wrong is forgotten.
        state.crop(count - 1)
        guess = lookup.following(min(most, criteria.max_length - count - 1))
        offset = count - ids.shape[1]
        tokens = ids.new_tensor([[token, *guess]])
        positions = position + torch.arange(offset, offset + tokens.shape[1], device=ids.device)
        logits = state.extend(tokens, positions[None], None, tokens.shape[1])[0]
