"""A layer's tensors as autocast has them, without a cast of the weight at every call."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime.autocast import autocast
from aigc_fast.runtime.kept import cast
from aigc_fast.runtime.operator import plain_eager

_LOWERED = torch.float32, torch.bfloat16


def keeps_casts(*tensors: Tensor | None) -> bool:
    """Whether `lowered` keeps what it makes of these: plain bfloat16 autocast on the CPU with no gradient to come."""
    if not plain_eager() or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    graded = torch.is_grad_enabled()
    return all(
        tensor is None or (tensor.is_cpu and tensor.dtype in _LOWERED and not (graded and tensor.requires_grad))
        for tensor in tensors
    )


def lowered(input: Tensor, weight: Tensor, bias: Tensor | None, uses: int) -> list[Tensor | None]:
    """`autocast` of a layer's tensors; the weight's is kept as long as the weight is what it was.

    Args:
        input, weight, bias: of the layer.
        uses: multiplications with each number of the weight; see `kept.fingerprint`.
    """
    if keeps_casts(input, weight, bias):
        weight = cast(weight, torch.bfloat16, uses)
    return autocast((input, weight, bias))
