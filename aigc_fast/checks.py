"""Checks of arguments, which name the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.runtime.arguments import check_types, whole
from aigc_fast.runtime.operator import functorch_level, is_compiling

_LARGEST = 2**63 - 1
_SHOWN = 100


def integer(name: str, value: Any, least: int) -> int:
    """The value as an int.

    Raises:
        TypeError: where it is no integer.
        UserError: where it is less than `least`, or has more than 64 bits.
    """
    number = whole(name, value)
    if number < least:
        raise UserError(f"{name}={number}: expected at least {least}")
    if number > _LARGEST:
        raise UserError(f"{name}={number}: expected at most {_LARGEST}")
    return number


def check_seed(seed: Any) -> None:
    """Refuses what PyTorch's generators don't take: by TypeError what is no integer, by UserError what is too large."""
    integer("seed", seed, -_LARGEST - 1)


def check_text(**values: Any) -> None:
    """Refuses, by name, what is neither a str nor None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}: expected a str")


def check_strings(name: str, texts: Any) -> None:
    """Refuses, by TypeError, what is no sequence of strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        what = "a single one" if isinstance(texts, str) else type(texts).__name__
        raise TypeError(f"{name}: expected a sequence of strings, got {what}")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected a sequence of strings, got {type(text).__name__} among them")


def check_pairs(name: str, pairs: Any) -> None:
    """Refuses, by TypeError, what is no sequence of pairs of strings."""
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise TypeError(f"{name}: expected a sequence of pairs of strings, got {type(pairs).__name__}")
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and [isinstance(side, str) for side in pair] == [True, True]):
            raise TypeError(f"{name}: expected a sequence of pairs of strings, got {repr(pair)[:_SHOWN]} among them")


def as_path(name: str, value: Any) -> Path:
    """The path that a str or path-like object names.

    Raises:
        TypeError: where it is neither.
        UserError: where no file can be called so.
    """
    try:
        path = Path(value)
        if "\0" in str(path):
            raise ValueError("no file's name holds a zero byte")
        path.exists()
    except TypeError:
        raise TypeError(f"{name} is {type(value).__name__}: expected a str or os.PathLike") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name}={str(value)[:_SHOWN]!r}: {getattr(error, 'strerror', None) or error}") from None
    return path


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


def check_finite(most: float = math.inf, /, **tensors: Tensor) -> None:
    """Refuses NaN and infinity, and numbers of a greater size than `most`, whose sums or squares would be infinite, by
    ValueError; a compiled graph and functorch's transforms have no values to ask for."""
    if is_compiling() or functorch_level() is not None:
        return
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            wrong = ~tensor.isfinite()
            raise ValueError(
                f"{name}: expected finite values, got {int(wrong.sum())} that are NaN or infinite, "
                f"the first at {tuple(wrong.nonzero()[0].tolist())}"
            )
        if most < math.inf and tensor.numel() and (greatest := tensor.abs().max().item()) > most:
            raise ValueError(f"{name}: expected values within ±{most:.0e}, got one of size {greatest:.3g}")
