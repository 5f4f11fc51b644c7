"""What `torch.utils.flop_counter.FlopCounterMode` counts for our ops.

Its module is slow to import, Triton with it: the formulas are registered when somebody imports it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

_MODULE = "torch.utils.flop_counter"
_formulas: list[tuple[torch._ops.OpOverloadPacket, Callable[..., int]]] = []


def count(packet: torch._ops.OpOverloadPacket, formula: Callable[..., int]) -> None:
    """Has a call of the op counted by a formula, as for `torch.utils.flop_counter.register_flop_formula`."""
    if _MODULE in sys.modules:
        sys.modules[_MODULE].register_flop_formula(packet)(formula)
    else:
        _formulas.append((packet, formula))


class _Watch(MetaPathFinder):
    """Sees the module's first import, and lets it go on as it would have."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            for packet, formula in _formulas:
                module.register_flop_formula(packet)(formula)

        spec.loader.exec_module = execute_and_register
        return spec


if _MODULE not in sys.modules:
    sys.meta_path.insert(0, _Watch())
