"""What makes a module of ours PyTorch's to tools that take modules apart: torch.fx, TorchScript, ONNX, quantization."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import Proxy
from torch.nn.utils import parametrize

from aigc_fast.nn.overrides import as_written
from aigc_fast.runtime.modules import stand_ins
from aigc_fast.runtime.recording import has_torch_function_variadic, is_symbolic, tracing_state

Module = TypeVar("Module", bound=type[nn.Module])


def become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Changes the class of a module in place; parametrizations stay in front of it."""
    if parametrize.is_parametrized(module):
        old = type(module)
        members = {key: value for key, value in vars(old).items() if key not in ("__dict__", "__weakref__", "__doc__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def become_drop_ins(modules: Iterable[nn.Module]) -> None:
    """Changes the class of those of the modules that there is a drop-in for, in place."""
    ours = {torchs: cls for cls, torchs in stand_ins.items()}
    for module in modules:
        if type(module) in ours:
            become(module, ours[type(module)])


def drop_in(cls: Module) -> Module:
    """Class decorator of modules that stand for the torch.nn class that they derive from.

    torch.fx keeps them whole where it keeps torch.nn's. `torch.jit.trace`, `torch.jit.script` and exports to ONNX find
    PyTorch's methods, and so does everybody where these were replaced in PyTorch's class. Quantization knows layers by
    their exact type: a module that is given a `qconfig` becomes PyTorch's.
    """
    torchs = cls.__bases__[0]
    own = {name for name, value in vars(cls).items() if isinstance(value, FunctionType) and hasattr(torchs, name)}
    for name in own | {"forward"}:
        setattr(cls, name, _giving_way(torchs, name, getattr(cls, name)))

    cls.qconfig = _QuantizedAs(torchs)
    stand_ins[cls] = torchs
    return cls


class _WrittenAs:
    """The attribute `__wrapped__` of a class, and of nothing else: whose source `inspect` shows for its."""

    def __init__(self, cls: type[nn.Module], torchs: type[nn.Module]) -> None:
        self.cls, self.torchs = cls, torchs

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> type[nn.Module]:
        if module is None and owner is self.cls:
            return self.torchs
        raise AttributeError


def overloaded(cls: Module) -> Module:
    """Class decorator of drop-ins whose forward is overloaded: TorchScript takes overloads only if they stand where it
    finds the source of their class."""
    cls.__wrapped__ = _WrittenAs(cls, cls.__bases__[0])
    return cls


class _QuantizedAs:
    """The attribute `qconfig`: a module that is given one is to be quantized, and becomes PyTorch's."""

    def __init__(self, torchs: type[nn.Module]) -> None:
        self.torchs = torchs

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> _QuantizedAs:
        if module is None:
            return self
        raise AttributeError

    def __set__(self, module: nn.Module, qconfig: Any) -> None:
        become(module, self.torchs)
        module.qconfig = qconfig


def _giving_way(torchs: type[nn.Module], name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is PyTorch's where it must be, and otherwise `plain`."""
    theirs, shown = as_written(torchs, (name,))[name], getattr(torchs, name)
    # The methods have the globals of PyTorch's, in which TorchScript looks up the names of the source that they wrap.
    # So all that they read themselves are this function's names.
    lookup, overridden, tracing, elsewhere = getattr, has_torch_function_variadic, tracing_state, _elsewhere
    whole = not issubclass(torchs, nn.Sequential)

    def forward(self, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        ours = lookup(torchs, name) is theirs and tracing() is None
        if ours and not overridden(*args) and not (kwargs and overridden(*kwargs.values())):
            return plain(self, *args, **kwargs)
        return elsewhere(self, whole, plain if ours else lookup(torchs, name), args, kwargs)

    def inner(self, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        return (plain if lookup(torchs, name) is theirs else lookup(torchs, name))(self, *args, **kwargs)

    method = forward if name == "forward" else inner
    # A code of its own for each class: Dynamo gives up on one that it has compiled for eight different ones.
    found = FunctionType(method.__code__.replace(), shown.__globals__, name, None, method.__closure__)
    functools.update_wrapper(found, shown)
    found.__doc__ = plain.__doc__
    return found


def _elsewhere(
    module: nn.Module, whole: bool, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What a forward makes of arguments that torch.fx traces, if the module is to stay whole, or of others."""
    node = node_of(module, *args, **kwargs) if whole else None
    return method(module, *args, **kwargs) if node is None else node


def node_of(module: nn.Module, *args: Any, **kwargs: Any) -> Proxy | None:
    """The module's call as a node of the graph that torch.fx traces; None where it traces nothing, or the module."""
    if not is_symbolic(*args, *kwargs.values()):
        return None
    proxy = next(value for value in (*args, *kwargs.values()) if isinstance(value, Proxy))
    try:
        path = proxy.tracer.path_of_module(module)
    except (AttributeError, NameError):  # a tracer without modules; a module that is not one of its root's
        return None
    return proxy.tracer.create_proxy("call_module", path, args, kwargs) if path else None


def refuse_script(module: nn.Module) -> nn.Module:
    """The `__prepare_scriptable__` of modules that torch.nn has none of."""
    raise RuntimeError(f"torch.jit.script cannot compile {torch.typename(module)}: use torch.jit.trace or torch.export")
