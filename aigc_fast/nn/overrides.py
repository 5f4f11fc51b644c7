"""What somebody may have put in the place of a module's methods, and what watches its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.modules import module as module_hooks

# They make, show or load a module; what it computes does not depend on them.
_APART = {"__init__", "__setstate__", "__repr__", "extra_repr", "reset_parameters", "_reset_parameters"}
# What an instance may have of its own to be called by.
_CALLED_BY = frozenset(("_call_impl", "_wrapped_call_impl", "_compiled_call_impl"))
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def as_written(cls: type[nn.Module], names: Iterable[str]) -> dict[str, Callable[..., Any] | None]:
    """The class's functions of these names, to be taken before anybody can replace them; None for those that
    somebody who is neither PyTorch nor this package has replaced already."""
    found = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
    return {name: f if _is_known(f) else None for name, f in found.items()}


def _is_known(function: Callable[..., Any]) -> bool:
    # A decorator copies a function's `__module__`, and leaves its own globals.
    home = function.__globals__.get("__name__", "") if isinstance(function, FunctionType) else ""
    return home.startswith(("torch.", "aigc_fast."))


class Methods:
    """The methods of classes as these were written, from before anybody could replace them."""

    def __init__(self, classes: Iterable[type[nn.Module]]) -> None:
        self._names: dict[type[nn.Module], frozenset[str]] = {}
        self._ways_to_call: dict[type[nn.Module], frozenset[str]] = {}
        self._known: dict[type[nn.Module], tuple[tuple[type[nn.Module], str, Callable[..., Any] | None], ...]] = {}
        for cls in classes:
            names = _names_of_methods(cls)
            owners = [cls] if is_of_torch(cls) else [cls, cls.__bases__[0]]
            self._names[cls] = frozenset(names)
            self._ways_to_call[cls] = self._names[cls] | _CALLED_BY
            self._known[cls] = tuple(
                (owner, name, function) for owner in owners for name, function in as_written(owner, names).items()
            )

    def replaced(self, module: nn.Module, cls: type[nn.Module]) -> str | None:
        """What was replaced of the module's methods: on the instance, or in its class `cls`; None for nothing."""
        on_instance = self._names[cls] & vars(module).keys()
        if on_instance:
            return f"its {min(on_instance)} was replaced on the instance"
        in_class = (name for owner, name, function in self._known[cls] if getattr(owner, name) is not function)
        return next((f"{cls.__name__}.{name} was replaced" for name in in_class), None)

    def run_unseen(self, module: nn.Module) -> bool:
        """Whether a call of a module of one of the classes is one of their methods, which no hook sees."""
        # Every module of every call is asked: what is shorter to write costs more than the questions.
        cls, own = type(module), vars(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return False
        if not own.keys().isdisjoint(self._ways_to_call[cls]):
            return False
        for owner, name, function in self._known[cls]:  # noqa: SIM110
            if getattr(owner, name) is not function:
                return False
        return True


def is_unwatched(module: nn.Module) -> bool:
    """Whether a call of the module, of whatever class, is its class's forward, which no hook sees."""
    own = vars(module)
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    return "forward" not in own and own.keys().isdisjoint(_CALLED_BY)


def is_of_torch(cls: type[nn.Module]) -> bool:
    """Whether a class is PyTorch's own."""
    return cls.__module__.startswith("torch.")


def _names_of_methods(cls: type[nn.Module]) -> list[str]:
    own = cls.__mro__[: cls.__mro__.index(nn.Module)]
    names = {name for base in own for name in vars(base)} - _APART
    return sorted(name for name in names if callable(getattr(cls, name)))


_CALLS = as_written(nn.Module, ("__call__", "_wrapped_call_impl", "_call_impl"))


def calls_are_observed() -> bool:
    """Whether global hooks see the calls of all modules, or somebody replaced how modules are called."""
    for name in _GLOBAL_HOOKS:
        if getattr(module_hooks, name):
            return True
    for name, function in _CALLS.items():  # noqa: SIM110
        if getattr(nn.Module, name) is not function:
            return True
    return False
