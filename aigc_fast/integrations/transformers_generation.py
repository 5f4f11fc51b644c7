"""`generate` of transformers' own models on the native engine, in place.

A model becomes an instance of a dynamic subclass of its class, of the same name. `generate` goes on preparing the
configuration, lengths, masks, beams, processors and criteria; what it then calls to decode is a loop of our own where
nobody looks into it, or transformers' own loop with logits that the engine computes, or transformers' own whole, with
the reason logged and reported.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as TF
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.generation import GenerationMixin, logits_process
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from aigc_fast.errors import UserError
from aigc_fast.integrations.transformers_decoders import BUILDERS, Refused, spec_of
from aigc_fast.models.text.decoding import Plan, search_on
from aigc_fast.models.text.options import Never, NoRepeatedNGram, Options
from aigc_fast.ops.decode.choice import backend_on, check, wanted_on
from aigc_fast.ops.decode.engine import MOST_GREEDY, Engine, State, default_weights
from aigc_fast.ops.decode.keeping import engine_of, forget
from aigc_fast.ops.decode.lookup import MOST_GUESSED, Lookup
from aigc_fast.ops.decode.spec import Spec

__all__ = ["Decision", "decision_of", "is_swapped", "last_decision", "put_back", "refusal", "swap"]

log = logging.getLogger("aigc_fast")

LOOP, STEP, LEFT = "native loop", "native step", "transformers"
# The name of a model's keys and values among its arguments and results changed in 5.24.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
_METHODS = "_sample", "_beam_search", "_assisted_decoding"
# Arguments of a call that change nothing, besides those that are read.
_INERT = {"use_cache", "logits_to_keep", "cache_position", "return_dict", "next_sequence_length"}
_READ = {"input_ids", "attention_mask", "position_ids", _CACHE}
_OF_LOOPS = {
    "logits_processor",
    "stopping_criteria",
    "generation_config",
    "streamer",
    "synced_gpus",
    "inputs_tensor",
    "assistant_model",
    "assistant_tokenizer",
    "candidate_generator",
    "tokenizer",
}
_WEIGHTS_ATTRIBUTE = "generation_weights"


class Decision(NamedTuple):
    """How a call of `generate` runs.

    Attributes:
        level: "native loop", "native step" of transformers' loop, or "transformers".
        weights: how the engine keeps them; None of transformers'.
        reason: why it is transformers', or None.
        backend: whose engine it is, or would be.
    """

    level: str
    weights: str | None
    reason: str | None
    backend: str = "cpu"

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.level}' own: {self.reason}"
        return f"{self.level}{' on CUDA' if self.backend == 'cuda' else ''}, {self.weights} weights"


class _Asked(BaseException):
    """Ends a call that only asks for its decision."""


_asking: ContextVar[bool] = ContextVar("aigc_fast_asking_for_generation", default=False)
_decisions: WeakKeyDictionary[nn.Module, Decision] = WeakKeyDictionary()


class NativeCache(DynamicCache):
    """What transformers' loops hold in place of keys and values, which the engine keeps."""

    is_compileable = False
    is_croppable = True
    is_initialized = True

    def __init__(self, state: State, keep: int | None) -> None:
        # Nothing of DynamicCache's own is used, but its type.
        self.state, self.keep, self.layers = state, keep, []
        self.is_sliding = self.is_linear = [False] * state.engine.layers

    is_sliding = is_linear = None

    def __len__(self) -> int:
        return self.state.engine.layers

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Tokens that each sequence has been given."""
        return self.state.length

    def get_max_cache_shape(self, *args: Any, **kwargs: Any) -> int:
        """As of a cache that grows."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Lets every sequence go on from another one."""
        self.state.reorder(beam_idx)

    def crop(self, max_length: int) -> None:
        """Forgets tokens: so many where the number is negative, all but so many where it is positive."""
        length = self.state.length + max_length if max_length < 0 else max_length or self.state.length
        if length < self.state.length:
            self.state.crop(length)

    def activate_past_recording(self) -> None:
        """Nothing: all of the past can be gone back to."""


def _step(cache: NativeCache, kwargs: dict[str, Any]) -> CausalLMOutputWithPast:
    """What the model makes of some tokens more."""
    if unknown := [name for name, value in kwargs.items() if name not in _READ | _INERT and value not in (None, False)]:
        raise NotImplementedError(f"generation in place does not know the argument {unknown[0]}")
    ids, state = kwargs["input_ids"], cache.state
    rows, count = ids.shape
    positions, visible = kwargs.get("position_ids"), _visible(kwargs.get("attention_mask"), count)
    if positions is None:
        positions = torch.arange(state.length, state.length + count, device=ids.device)[None]
    kept = kwargs.get("logits_to_keep")
    keep = cache.keep or (kept if isinstance(kept, int) and kept else count)
    logits = state.extend(ids, positions.expand(rows, count), visible, min(keep, count))
    return CausalLMOutputWithPast(logits=logits, **{_CACHE: cache})


def _visible(mask: Tensor | None, count: int) -> Tensor | None:
    """Which of the last tokens are seen; None for all."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise NotImplementedError(f"attention_mask has {mask.dim()} dimensions: expected (batch, length)")
    seen = mask[:, mask.shape[1] - count :] != 0
    return None if seen.all() else seen


class _InPlace:
    """What stands in front of a model's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's call; of a cache that is the engine's, the engine's."""
        cache = kwargs.get(_CACHE)
        return _step(cache, kwargs) if type(cache) is NativeCache else super().__call__(*args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """Copies and pickles name the class that there is."""
        _, _, *state = super().__reduce_ex__(max(2, protocol))
        return _revived, (original_class(self),), *state

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        (model_kwargs,) = (value for value in (*args, *kwargs.values()) if type(value) is dict)
        is_given = model_kwargs.get(_CACHE) is not None
        found = super()._prepare_cache_for_generation(*args, **kwargs)
        if not is_given and model_kwargs.get(_CACHE) is not None:
            model_kwargs[_CACHE].is_of_this_call = True
        return found


def _revived(cls: type[nn.Module]) -> nn.Module:
    fast = _subclass(cls)
    return fast.__new__(fast)


@functools.cache
def _subclass(cls: type[nn.Module]) -> type[nn.Module]:
    members = {name: _decoding(cls, name) for name in _METHODS if hasattr(cls, name)}
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_InPlace, cls), members | names)


def _decoding(cls: type[nn.Module], name: str) -> Callable[..., Any]:
    theirs = getattr(cls, name)

    @functools.wraps(theirs)
    def decode(self: nn.Module, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        spec, decision = _decide(self, cls, name, input_ids, args, kwargs)
        if _asking.get():
            raise _Asked(decision)
        _decisions[self] = decision
        if spec is None:
            _say_once(cls.__name__, decision.reason)
            return theirs(self, input_ids, *args, **kwargs)
        engine = engine_of(self, spec, decision.weights, kwargs["generation_config"].max_length or 1)
        if decision.level == LOOP:
            if name == "_beam_search":
                return _beam_loop(engine, input_ids, kwargs)
            if name != "_sample":
                return _lookup_loop(self, engine, input_ids, kwargs)
            bans = _bans(kwargs) if input_ids.shape[0] <= MOST_GREEDY and engine.certify(spec) else None
            return _loop(self, engine, input_ids, kwargs, bans)
        return _decode(self, engine, theirs, None if name == "_assisted_decoding" else 1, input_ids, kwargs)

    return decode


def _decode(
    model: nn.Module, engine: Engine, theirs: Callable[..., Any], keep: int | None, ids: Tensor, kwargs: dict[str, Any]
) -> Any:
    """Transformers' loop on the engine."""
    given, state = kwargs.get(_CACHE), engine.begin(ids.shape[0])
    if given is not None and given.get_seq_length():
        _load(state, given, kwargs.get("attention_mask"))
    with torch.no_grad():
        result = theirs(model, ids, **kwargs | {_CACHE: NativeCache(state, keep)})
    is_dict = not isinstance(result, Tensor)
    if given is not None and (is_dict or not getattr(given, "is_of_this_call", False)):
        _store(state, given, model.dtype)
    if is_dict and result.get(_CACHE) is not None:
        setattr(result, _CACHE, given)
    return result


def _loops(kwargs: dict[str, Any]) -> bool:
    """Whether nobody looks into transformers' loop of one token after the other, so that ours can stand for it."""
    config, criteria, mask = kwargs["generation_config"], kwargs["stopping_criteria"], kwargs.get("attention_mask")
    if config.return_dict_in_generate or kwargs[_CACHE].get_seq_length():
        return False
    if getattr(config, "prefill_chunk_size", None) is not None or (mask is not None and not mask[:, -1].all()):
        return False
    lengths = [each for each in criteria if type(each) is MaxLengthCriteria]
    if len(lengths) != 1 or any(type(each) not in (MaxLengthCriteria, *_OTHER_CRITERIA) for each in criteria):
        return False
    most = lengths[0].max_position_embeddings
    return most is None or lengths[0].max_length <= most  # transformers' loop says it


def _processors_known(kwargs: dict[str, Any]) -> bool:
    """Whether no processor is the user's own, who may count its calls or look at beams that we order differently."""
    return all(type(each).__module__ == logits_process.__name__ for each in kwargs["logits_processor"])


_OTHER_CRITERIA = EosTokenCriteria, MaxTimeCriteria, StopStringCriteria


def _looks_up(ids: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether candidates come from the prompt, and which ones changes no id."""
    config, generator = kwargs["generation_config"], kwargs.get("candidate_generator")
    from_prompt = generator is None or type(generator).__name__ == "PromptLookupCandidateGenerator"
    plain = kwargs.get("assistant_model") is None and from_prompt and not config.do_sample and ids.shape[0] == 1
    return bool(plain and getattr(config, "prompt_lookup_num_tokens", None))


def _follows_beams(kwargs: dict[str, Any]) -> bool:
    """Whether our loop of beams does what this transformers' does; of those that are drawn, versions differ."""
    config = kwargs["generation_config"]
    if config.do_sample or getattr(config, "low_memory", None):
        return False
    known = hasattr(GenerationMixin, "_check_early_stop_heuristic") and _beam_options(config) is not None
    plain = all(type(each) in (MaxLengthCriteria, EosTokenCriteria) for each in kwargs["stopping_criteria"])
    return known and plain and getattr(kwargs[_CACHE], "is_of_this_call", False)


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
def _beam_loop(engine: Engine, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """transformers' `_beam_search` for ids alone."""
    plan = Plan(ids, None, kwargs["stopping_criteria"].max_length, _beam_options(kwargs["generation_config"]))
    state, positions, logits = _begun(engine, ids, kwargs)
    return search_on(state, plan, logits, positions, list(map(_as_our_own, kwargs["logits_processor"])))


def _begun(engine: Engine, ids: Tensor, kwargs: dict[str, Any]) -> tuple[State, Tensor, Tensor]:
    """Sequences that have had their prompts, the last tokens' positions, and the logits after them."""
    rows, count = ids.shape
    visible, positions = _visible(kwargs.get("attention_mask"), count), kwargs.get("position_ids")
    if positions is None:
        seen = torch.ones_like(ids) if visible is None else visible.long()
        positions = (seen.cumsum(1) - 1).clamp_min(0)
    state = engine.begin(rows)
    logits = state.extend(ids, positions.expand(rows, count), visible, 1)[:, 0]
    return state, positions[:, -1].clone(), logits


def _ended(model: nn.Module, state: State, found: Tensor, count: int, kwargs: dict[str, Any]) -> Tensor:
    """The ids that were found; a cache that the caller gave is filled."""
    given, streamer = kwargs[_CACHE], kwargs.get("streamer")
    if not getattr(given, "is_of_this_call", False):
        _store(state, given, model.dtype)
    if streamer is not None:
        streamer.end()
    return found[:, :count].clone() if count < found.shape[1] else found


def _room(ids: Tensor, most: int) -> Tensor:
    """The ids, and room for more of them."""
    found = ids.new_empty(ids.shape[0], max(most, ids.shape[1] + 1))
    found[:, : ids.shape[1]] = ids
    return found


def _bans(kwargs: dict[str, Any]) -> Callable[[int], Tensor] | None:
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


_NO_TOKENS = torch.empty(0, dtype=torch.int64)


@torch.no_grad()
def _loop(
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
def _lookup_loop(model: nn.Module, engine: Engine, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
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


def _pairs(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer of a cache that has some."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))  # before 4.54


def _load(state: State, given: DynamicCache, mask: Tensor | None) -> None:
    length = given.get_seq_length()
    # Layers with a window have forgotten the first ones, and don't look at them.
    pairs = [tuple(TF.pad(tensor, (0, 0, length - tensor.shape[2], 0)) for tensor in pair) for pair in _pairs(given)]
    state.load(pairs, None if mask is None else mask[:, :length] != 0)


def _store(state: State, given: DynamicCache, dtype: torch.dtype) -> None:
    """Fills transformers' own cache with what the engine has."""
    had = given.get_seq_length()
    for index, pair in enumerate(state.export()):
        keys, values = (tensor.to(dtype) for tensor in pair)
        if not had:
            given.update(keys, values, index)
        elif hasattr(given, "layers"):
            layer = given.layers[index]
            window = getattr(layer, "sliding_window", None)
            kept = slice(0 if window is None else max(0, state.length - window + 1), None)
            layer.keys, layer.values = keys[:, :, kept], values[:, :, kept]
            if window is not None:
                layer.cumulative_length = state.length
        else:
            given.key_cache[index], given.value_cache[index] = keys, values
            given._seen_tokens = state.length


@functools.cache
def _say_once(name: str, reason: str) -> None:
    log.warning("%s.generate runs as transformers' own: %s", name, reason)


def _decide(
    model: nn.Module, cls: type[nn.Module], name: str, ids: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Spec | None, Decision]:
    try:
        if args:
            raise Refused("it was called in an unknown way")
        if kwargs.get(_CACHE) is None and kwargs.get("use_cache"):  # 5.0 leaves it to the model
            kwargs[_CACHE] = DynamicCache()
            kwargs[_CACHE].is_of_this_call = True
        kept_as = vars(model).get(_WEIGHTS_ATTRIBUTE)
        backend = backend_on(ids.device, kept_as)
        _check_call(kwargs)
        if getattr(kwargs["generation_config"], "prefill_chunk_size", None) and not hasattr(cls, "_prefill"):
            raise Refused("this transformers computes prompts in chunks by the model's forward")
        _check_tensors(ids, kwargs)
        spec = spec_of(model, cls)
        check(spec, backend)
        _check_windows(kwargs[_CACHE], spec)
    except Refused as refused:
        return None, Decision(LEFT, None, str(refused), wanted_on(ids.device))
    looks_up = name == "_assisted_decoding" and _looks_up(ids, kwargs)
    beams = name == "_beam_search" and _follows_beams(kwargs)
    known = name == "_sample" or ((looks_up or beams) and _processors_known(kwargs))
    level = LOOP if known and _loops(kwargs) else STEP
    return spec, Decision(level, kept_as or default_weights(spec), None, backend)


def _check_call(kwargs: dict[str, Any]) -> None:
    config = kwargs["generation_config"]
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise Refused(f"{name}: the engine does not keep them")
    if getattr(config, "is_assistant", False):
        raise Refused("it assists another model, which keeps its cache")
    if kwargs.get("synced_gpus"):
        raise Refused("synced_gpus")
    if kwargs.get("use_cache") is False or config.use_cache is False:
        raise Refused("use_cache=False")
    known = _OF_LOOPS | _INERT | _READ
    if unknown := [name for name, value in kwargs.items() if name not in known and value is not None]:
        raise Refused(f"the argument {unknown[0]}")


def _check_tensors(ids: Tensor, kwargs: dict[str, Any]) -> None:
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise Refused(f"input_ids is {ids.dtype} of {ids.dim()} dimensions")
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise Refused("there are no ids")
    cache = kwargs.get(_CACHE)
    if cache is None:
        raise Refused("there is no cache")
    plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    if not plain or any(type(layer).__name__ not in _CACHE_LAYERS for layer in getattr(cache, "layers", ())):
        raise Refused(f"the cache is a {type(cache).__name__}, not a plain DynamicCache")
    if cache.get_seq_length():
        keys = _pairs(cache)[0][0]
        if keys.shape[0] != ids.shape[0] or keys.device != ids.device:
            raise Refused("the cache is of another batch or device")


_CACHE_LAYERS = "DynamicLayer", "DynamicSlidingWindowLayer"


def _check_windows(cache: DynamicCache, spec: Spec) -> None:
    """Refuses a cache that keeps less than layers see."""
    kept = [getattr(layer, "sliding_window", None) for layer in getattr(cache, "layers", ())]
    seen = [layer.window for layer in spec.layers]
    if len(kept) > len(seen) or any(one not in (None, other) for one, other in zip(kept, seen, strict=False)):
        raise Refused("the cache is of a model with other windows")


def original_class(model: nn.Module) -> type[nn.Module]:
    """The class of transformers that the model is, or was before it was swapped."""
    cls = type(model)
    return cls.__mro__[2] if issubclass(cls, _InPlace) else cls


def concerns(model: nn.Module) -> bool:
    """Whether a model generates by one of the classes that there are builders for, or by a subclass of one."""
    return isinstance(model, tuple(BUILDERS))


def is_swapped(model: nn.Module) -> bool:
    """Whether the model's `generate` may run on the engine."""
    return isinstance(model, _InPlace)


def refusal(model: nn.Module) -> str | None:
    """Why a model can't be swapped, or None."""
    cls = original_class(model)
    return None if cls in BUILDERS else f"{cls.__name__} is a subclass: its forward may differ"


def swap(model: nn.Module, weights: str | None) -> None:
    """Makes the model's `generate` run on the engine.

    Args:
        model: of one of the classes that there are builders for.
        weights: "fp32", "bf16", "int8", "int4", or None for as they are.
    """
    model.__class__ = _subclass(original_class(model))
    setattr(model, _WEIGHTS_ATTRIBUTE, weights)


def put_back(model: nn.Module) -> None:
    """Makes the model transformers' again, and gives back the memory of its engine."""
    model.__class__ = original_class(model)
    vars(model).pop(_WEIGHTS_ATTRIBUTE, None)
    forget(model)
    _decisions.pop(model, None)


def last_decision(model: nn.Module) -> Decision | None:
    """How the last call of `generate` ran, if there was one."""
    return _decisions.get(model)


@contextmanager
def _asked() -> Iterator[None]:
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def decision_of(model: nn.Module, *args: Any, **kwargs: Any) -> Decision:
    """How `model.generate(*args, **kwargs)` would run; nothing is generated.

    Raises:
        Exception: whatever `generate` raises on bad arguments.
    """
    if not is_swapped(model):
        return Decision(LEFT, None, "aigc_fast.optimize(model) was not called")
    kwargs.pop("streamer", None)
    try:
        with _asked():
            model.generate(*args, **kwargs)
    except _Asked as asked:
        return asked.args[0]
    return Decision(LEFT, None, "it does not come to one of transformers' decoding loops")
