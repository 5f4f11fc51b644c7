"""Checks of arguments, which name the argument, what came and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.support import check_types

DTYPES = (torch.float32, torch.float64)


def integer(name: str, value: Any, least: int) -> int:
    """The value as an int.

    Raises:
        TypeError: where it is no integer.
        ValueError: where it is less than `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {type(value).__name__}: expected an integer") from None
    if number < least:
        raise ValueError(f"{name}={number}: expected at least {least}")
    return number


def check_choice(name: str, value: str, choices: Mapping[str, Any]) -> None:
    """Raises ValueError where the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def rows_of(x: Tensor) -> Tensor:
    """Series (T,) or (B, T) as (B, T).

    Raises:
        TypeError: where x is not a Tensor.
        ValueError: on another shape or dtype.
    """
    check_types(x=x)
    if x.dim() not in (1, 2) or not x.shape[:-1].numel():
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (T,) or (B, T), B at least 1")
    if x.dtype not in DTYPES:
        raise ValueError(f"x has dtype {x.dtype}: expected float32 or float64")
    return x if x.dim() == 2 else x[None]
