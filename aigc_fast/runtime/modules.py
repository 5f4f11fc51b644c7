"""Classes of modules that stand for others."""

from __future__ import annotations

from torch import nn

# For a drop-in's class, PyTorch's class that it stands for, with the same parameters and results.
stand_ins: dict[type[nn.Module], type[nn.Module]] = {}


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The module's class; of a drop-in PyTorch's, of a subclass of either that subclass."""
    return stand_ins.get(type(module), type(module))
