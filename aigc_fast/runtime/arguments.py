"""Arguments that do not fit."""

from __future__ import annotations

import torch
from torch import Tensor

_functorch_level = torch._C._functorch.peek_interpreter_stack

# What PyTorch raises for arguments that don't fit. Its message may name a primitive of its backend rather than the
# argument, so the ops look again.
REFUSALS = (RuntimeError, TypeError, AttributeError, IndexError, BufferError)


def check_types(**tensors: Tensor) -> None:
    """Refuses, by name, what is not a tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")


def numbers_of(integers: Tensor) -> list[int]:
    """`integers.tolist()` of a tensor (N,), which torch 2.6 refuses of what is made inside functorch's transforms."""
    return integers.tolist() if _functorch_level() is None else list(map(int, integers))
