"""Decoders among a model's modules: transformers', what became of their `generate`, and the swap; and our own."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

from aigc_fast.ops.decode import keeping
from aigc_fast.ops.decode.choice import not_taken
from aigc_fast.optimize.reporting import Entry
from aigc_fast.runtime.backends import NAMES, NOT_THERE, Explanation

FAMILIES = "gpt2", "gpt_neox", "llama", "mistral", "qwen2"
"""Of transformers' models, those that there are builders for."""


def _integration() -> ModuleType | None:
    """What swaps decoders; None where nobody has imported one of their classes, so that there are none."""
    names = (f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)
    if not any(name in sys.modules for name in names):
        return None
    return importlib.import_module("aigc_fast.integrations.transformers_generation")


def found_in(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoders in a model, by name."""
    integration = _integration()
    if integration is None:
        return []
    return [(name or "(model)", module) for name, module in model.named_modules() if integration.concerns(module)]


def _own_in(model: nn.Module) -> list[tuple[str, Any]]:
    """Our own decoders in a model, by name, which generate on the engine anyway."""
    room = sys.modules.get("aigc_fast.models.text.decoder")
    if room is None:
        return []
    named = ((name or "(model)", module) for name, module in model.named_modules())
    return [(name, module) for name, module in named if isinstance(module, room.DecoderModel)]


def swap(model: nn.Module, weights: str | None) -> None:
    """Makes every decoder in a model that can be swapped generate on the engine."""
    for _, module in _own_in(model):
        module.weights = weights or module.weights
    for _, module in found_in(model):
        if _integration().refusal(module) is None:
            _integration().swap(module, weights)


def put_back(model: nn.Module) -> None:
    """Makes every decoder in a model transformers' own again, and ours as they were made."""
    for _, module in _own_in(model):
        module.weights = None
        keeping.forget(module)
    for _, module in found_in(model):
        if _integration().is_swapped(module):
            _integration().put_back(module)


def entries(model: nn.Module) -> tuple[Entry, ...]:
    """What became of a model's decoders, and how their last call of `generate` ran."""
    own = (Entry(name, type(module).__name__, True, _last(module.way)) for name, module in _own_in(model))
    return (*(_entry(name, module) for name, module in found_in(model)), *own)


def _entry(name: str, module: nn.Module) -> Entry:
    integration = _integration()
    kind, swapped = integration.original_class(module).__name__, integration.is_swapped(module)
    if not swapped:
        return Entry(name, kind, False, integration.refusal(module) or "not optimized yet")
    return Entry(name, kind, True, _last(integration.last_decision(module)))


def _last(way: object) -> str:
    return "not called yet" if way is None else f"last call: {way}"


def nbytes(model: nn.Module) -> int:
    """Memory that the packed weights of a model's decoders take now."""
    return sum(keeping.kept_bytes(module) for _, module in (*found_in(model), *_own_in(model)))


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """How `model.generate(*args, **kwargs)` would run; nothing is generated.

    Raises:
        TypeError: when `model` is not a model that generates.
        Exception: whatever `generate` raises on bad arguments.
    """
    if not (isinstance(model, nn.Module) and hasattr(model, "generate")):
        raise TypeError(f"model: expected a model that generates, got {type(model).__name__}")
    reasons = dict.fromkeys(NAMES[1:], NOT_THERE) | {"reference": None}
    if any(module is model for _, module in _own_in(model)):
        found = model.way_of(*args, **kwargs)
        return _explained(reasons, found.reason, str(found), found.backend, model.device)
    if not any(module is model for _, module in found_in(model)):
        reason = f"there is no builder for {type(model).__name__}"
        return Explanation("decode", "reference", reasons | {"cpu": reason}, "transformers' own generate")
    found = _integration().decision_of(model, *args, **kwargs)
    return _explained(reasons, found.reason, str(found), found.backend, next(model.parameters()).device)


def _explained(
    reasons: dict[str, str | None], reason: str | None, text: str, backend: str, device: torch.device
) -> Explanation:
    other = "cpu" if backend == "cuda" else "cuda"
    reasons = reasons | {backend: reason, other: not_taken(other, device)}
    return Explanation("decode", backend if reason is None else "reference", reasons, text)
