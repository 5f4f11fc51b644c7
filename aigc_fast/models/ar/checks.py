"""Checks of an autoregression's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def check_choice(name: str, value: str, choices: Mapping[str, Any]) -> None:
    """Raises ValueError where the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def tensor_of(
    name: str, value: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """A tensor as it is; of anything else that NumPy makes an array of, a copy.

    Args:
        name: the argument's name.
        value: a Tensor, a NumPy array, a pandas Series, numbers in sequences; of a DataFrame the columns are series.
        dtype: of the copy; by default float32 where the array is, float64 of any other.
        device: of the copy.

    Raises:
        TypeError: if it holds no real numbers.
        ValueError: if rows are of unlike lengths, or a masked array hides some.
    """
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} has rows that make no array, {error}: expected (T,) or (B, T)") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{name} is {type(value).__name__} of {array.dtype}: expected a Tensor, or an array of real numbers"
        )
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked values: expected finite values")
    if array.ndim == 2 and hasattr(value, "columns"):
        array = array.T
    copy = array.astype(np.float32 if array.dtype == np.float32 else np.float64, order="C")
    return torch.from_numpy(copy).to(device=device, dtype=dtype)


def rows_of(x: Tensor) -> Tensor:
    """Series (T,) or (B, T) as (B, T).

    Raises:
        ValueError: for another shape or dtype.
    """
    if x.dim() not in (1, 2) or not x.shape[:-1].numel():
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (T,) or (B, T), B at least 1")
    if x.dtype not in DTYPES:
        raise ValueError(f"x has dtype {x.dtype}: expected float32 or float64")
    return x if x.dim() == 2 else x[None]
