"""Checks of arguments, which name the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime.arguments import check_types, whole
from aigc_fast.runtime.operator import functorch_level, is_compiling


def integer(name: str, value: Any, least: int) -> int:
    """The value as an int.

    Raises:
        TypeError: where it is no integer.
        ValueError: where it is less than `least`.
    """
    number = whole(name, value)
    if number < least:
        raise ValueError(f"{name}={number}: expected at least {least}")
    return number


def check_real(**tensors: Tensor) -> None:
    """Refuses what is no tensor, by TypeError, and truth values and complex numbers, by ValueError."""
    check_types(**tensors)
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"{name}: expected real numbers, got {tensor.dtype}")


def check_floating(**tensors: Tensor) -> None:
    """Refuses what is no tensor, by TypeError, and what is not of a floating-point type, by ValueError."""
    check_types(**tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected a floating-point type, got {tensor.dtype}")


def check_finite(**tensors: Tensor) -> None:
    """Refuses NaN and infinity by ValueError; a compiled graph and functorch's transforms have no values to ask for."""
    if is_compiling() or functorch_level() is not None:
        return
    for name, tensor in tensors.items():
        if bool(tensor.isfinite().all()):
            continue
        wrong = ~tensor.isfinite()
        raise ValueError(
            f"{name}: expected finite values, got {int(wrong.sum())} that are NaN or infinite, "
            f"the first at {tuple(wrong.nonzero()[0].tolist())}"
        )
