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
from torch import Tensor, nn
from transformers import DynamicCache

from aigc_fast.integrations.transformers_cache import (
    CACHE,
    INERT,
    READ,
    NativeCache,
    fill_cache,
    fill_state,
    pairs_of,
    step,
)
from aigc_fast.integrations.transformers_decoders import BUILDERS, Refused, spec_of
from aigc_fast.integrations.transformers_loops import (
    bans_of,
    beam_loop,
    follows_beams,
    is_unwatched,
    knows_processors,
    looks_up_prompt,
    lookup_loop,
    token_loop,
)
from aigc_fast.ops.decode.choice import backend_on, check, wanted_on
from aigc_fast.ops.decode.engine import MOST_GREEDY, Engine, default_weights
from aigc_fast.ops.decode.keeping import engine_of, forget
from aigc_fast.ops.decode.spec import Spec

__all__ = ["Decision", "decision_of", "is_swapped", "last_decision", "put_back", "refusal", "swap"]

log = logging.getLogger("aigc_fast")

LOOP, STEP, LEFT = "native loop", "native step", "transformers"
_METHODS = "_sample", "_beam_search", "_assisted_decoding"
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


class _InPlace:
    """What stands in front of a model's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's call; of a cache that is the engine's, the engine's."""
        cache = kwargs.get(CACHE)
        return step(cache, kwargs) if type(cache) is NativeCache else super().__call__(*args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """Copies and pickles name the class that there is."""
        _, _, *state = super().__reduce_ex__(max(2, protocol))
        return _revived, (original_class(self),), *state

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        (model_kwargs,) = (value for value in (*args, *kwargs.values()) if type(value) is dict)
        is_given = model_kwargs.get(CACHE) is not None
        found = super()._prepare_cache_for_generation(*args, **kwargs)
        if not is_given and model_kwargs.get(CACHE) is not None:
            model_kwargs[CACHE].is_of_this_call = True
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
                return beam_loop(engine, input_ids, kwargs)
            if name != "_sample":
                return lookup_loop(self, engine, input_ids, kwargs)
            bans = bans_of(kwargs) if input_ids.shape[0] <= MOST_GREEDY and engine.certify(spec) else None
            return token_loop(self, engine, input_ids, kwargs, bans)
        return _decode(self, engine, theirs, None if name == "_assisted_decoding" else 1, input_ids, kwargs)

    return decode


def _decode(
    model: nn.Module, engine: Engine, theirs: Callable[..., Any], keep: int | None, ids: Tensor, kwargs: dict[str, Any]
) -> Any:
    """Transformers' loop on the engine."""
    given, state = kwargs.get(CACHE), engine.begin(ids.shape[0])
    if given is not None and given.get_seq_length():
        fill_state(state, given, kwargs.get("attention_mask"))
    with torch.no_grad():
        result = theirs(model, ids, **kwargs | {CACHE: NativeCache(state, keep)})
    is_dict = not isinstance(result, Tensor)
    if given is not None and (is_dict or not getattr(given, "is_of_this_call", False)):
        fill_cache(state, given, model.dtype)
    if is_dict and result.get(CACHE) is not None:
        setattr(result, CACHE, given)
    return result


@functools.cache
def _say_once(name: str, reason: str) -> None:
    log.warning("%s.generate runs as transformers' own: %s", name, reason)


def _decide(
    model: nn.Module, cls: type[nn.Module], name: str, ids: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Spec | None, Decision]:
    try:
        if args:
            raise Refused("it was called in an unknown way")
        if kwargs.get(CACHE) is None and kwargs.get("use_cache"):  # 5.0 leaves it to the model
            kwargs[CACHE] = DynamicCache()
            kwargs[CACHE].is_of_this_call = True
        kept_as = vars(model).get(_WEIGHTS_ATTRIBUTE)
        backend = backend_on(ids.device, kept_as)
        _check_call(kwargs)
        if getattr(kwargs["generation_config"], "prefill_chunk_size", None) and not hasattr(cls, "_prefill"):
            raise Refused("this transformers computes prompts in chunks by the model's forward")
        _check_tensors(ids, kwargs)
        spec = spec_of(model, cls)
        check(spec, backend)
        _check_windows(kwargs[CACHE], spec)
    except Refused as refused:
        return None, Decision(LEFT, None, str(refused), wanted_on(ids.device))
    looks_up = name == "_assisted_decoding" and looks_up_prompt(ids, kwargs)
    beams = name == "_beam_search" and follows_beams(kwargs)
    known = name == "_sample" or ((looks_up or beams) and knows_processors(kwargs))
    level = LOOP if known and is_unwatched(kwargs) else STEP
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
    known = _OF_LOOPS | INERT | READ
    if unknown := [name for name, value in kwargs.items() if name not in known and value is not None]:
        raise Refused(f"the argument {unknown[0]}")


def _check_tensors(ids: Tensor, kwargs: dict[str, Any]) -> None:
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise Refused(f"input_ids is {ids.dtype} of {ids.dim()} dimensions")
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise Refused("there are no ids")
    cache = kwargs.get(CACHE)
    if cache is None:
        raise Refused("there is no cache")
    plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    if not plain or any(type(layer).__name__ not in _CACHE_LAYERS for layer in getattr(cache, "layers", ())):
        raise Refused(f"the cache is a {type(cache).__name__}, not a plain DynamicCache")
    if cache.get_seq_length():
        keys = pairs_of(cache)[0][0]
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
