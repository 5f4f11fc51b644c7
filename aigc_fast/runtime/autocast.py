"""Autocast, as PyTorch's ops of the same kind obey it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce

import torch
from torch import Tensor

any_autocast = torch._C._is_any_autocast_enabled


def has_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on where this tensor is; what every call asks, so the cheap question comes first."""
    return any_autocast() and not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


@cache
def passes_by(operator: str, device_type: str) -> bool:
    """Whether autocast leaves an operator of PyTorch's, such as "group_norm", as it is on devices of this type."""
    key = f"Autocast{device_type.upper()}"
    return not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operator}", key)


def autocast(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors in autocast's dtype, as the ops that it lowers take them; float64 and integers stay."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def promoted(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The tensors as autocast's policy "promote" has them, in the widest dtype among them; integers stay."""
    dtypes = {t.dtype for t in tensors if t is not None and t.is_floating_point()}
    if len(dtypes) < 2 or not has_autocast(tensors[0]):
        return tensors
    widest = reduce(torch.promote_types, dtypes)
    return [t.to(widest) if t is not None and t.is_floating_point() else t for t in tensors]
