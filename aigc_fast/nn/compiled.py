"""Modules that Dynamo refuses by their class in torch.nn, and that it may take: ours call one op, which it knows."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from aigc_fast.runtime.imports import after_import

Module = TypeVar("Module", bound=type[nn.Module])
_welcome: set[type[nn.Module]] = set()


def welcome(cls: Module) -> Module:
    """Class decorator of modules that Dynamo is to trace although it refuses those that they derive from."""
    _welcome.add(cls)
    return cls


def _open(builder: Any) -> None:
    """Has Dynamo's switch for torch.nn's recurrent modules on while it looks at one of ours, and only then."""
    config, plain = builder.config, builder.VariableBuilder.wrap_module
    if not hasattr(config, "allow_rnn"):
        return

    def wrap_module(self: Any, value: nn.Module) -> Any:
        if not isinstance(value, tuple(_welcome)):
            return plain(self, value)
        with config.patch(allow_rnn=True):
            return plain(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


after_import("torch._dynamo.variables.builder", _open)
