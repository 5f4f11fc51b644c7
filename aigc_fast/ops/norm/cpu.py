"""The native kernels of csrc/cpu/norm.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.activations import CODES
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32
from aigc_fast.runtime.memory import fill_densely


def unsupported(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Reason:
    """Why the kernels cannot take these tensors, or None."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype not in UP_TO_FLOAT32 or tensor.device != input.device):
            return f"{name} is {tensor.dtype} on {tensor.device}"
    if input.numel() == 0:
        return "the input has no elements"
    return devices.cpu(input, input.dtype, UP_TO_FLOAT32)


def filler(name: str) -> Callable[..., bool]:
    """What fills the results of the kernel of this name, from an op's arguments: the tensors, the groups or the shape
    that is normalized, eps, activation and slope."""

    def fill(results: Tensor | Sequence[Tensor], *args: Any) -> bool:
        *tensors, sizes, eps, activation, slope = args
        kernel = getattr(native.kernels(), name)
        filled = (results,) if isinstance(results, torch.Tensor) else results
        count = sizes if isinstance(sizes, int) else prod(sizes)
        numbers = count, eps, CODES[activation], slope
        return bool(kernel(*filled, *tensors, *numbers)) or fill_densely(kernel, filled, *tensors, *numbers)

    return fill
