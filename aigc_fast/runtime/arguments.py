"""Checks of arguments."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

_functorch_level = torch._C._functorch.peek_interpreter_stack

# What PyTorch raises for arguments that don't fit. Its message may name a primitive of its backend rather than the
# argument, so the ops look again.
REFUSALS = (RuntimeError, TypeError, AttributeError, IndexError, BufferError)


def check_types(**tensors: Tensor) -> None:
    """Raises TypeError, naming the argument, for anything but a Tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")


def numbers_of(integers: Tensor) -> list[int]:
    """`integers.tolist()` of a tensor (N,), which torch 2.6 refuses for tensors made inside functorch's transforms."""
    return integers.tolist() if _functorch_level() is None else list(map(int, integers))


def check_generator(generator: Any) -> None:
    """Raises TypeError for anything but a generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {type(generator).__name__}: expected a torch.Generator")


def check_flags(**flags: Any) -> None:
    """Raises TypeError, naming the argument, for anything but a bool, as PyTorch does."""
    for name, flag in flags.items():
        if not isinstance(flag, (bool, torch.SymBool)):
            raise TypeError(f"{name} is {type(flag).__name__}: expected a bool")


def check_probability(name: str, value: Any) -> None:
    """Raises TypeError or ValueError, naming the argument, for anything but a number from 0 to 1."""
    number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value}: expected a probability between 0 and 1")


def whole(name: str, value: Any) -> int:
    """The value as an int.

    Raises:
        TypeError: if it is not an integer; like PyTorch, a bool is not one.
    """
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass  # raised below, with the argument's name
    raise TypeError(f"{name} is {type(value).__name__}: expected an integer")


def number(name: str, value: Any) -> float:
    """The value as a float.

    Raises:
        TypeError: if it is not a real number.
    """
    if type(value) is float:
        return value
    try:
        # A string is not a number, although `float` parses it.
        return float(value + 0.0)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {type(value).__name__}: expected a number") from None
