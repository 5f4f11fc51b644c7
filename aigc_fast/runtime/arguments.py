"""Arguments that do not fit."""

from __future__ import annotations

from torch import Tensor

# What PyTorch raises for arguments that don't fit. Its message may name a primitive of its backend rather than the
# argument, so the ops look again.
REFUSALS = (RuntimeError, TypeError, AttributeError, IndexError, BufferError)


def check_types(**tensors: Tensor) -> None:
    """Refuses, by name, what is not a tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")
