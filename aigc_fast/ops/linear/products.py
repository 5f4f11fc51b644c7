"""Products of matrices within other ops: this package's where automatic choice has linear layers train on them."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.linear import choice, cpu


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`torch.mm(a, b, out=out)`, by whichever kernel is faster on this processor; of no gradients.

    Args:
        a: (rows, depth).
        b: (depth, columns).
        out: (rows, columns), contiguous.

    Returns:
        `out`.
    """
    if not a.is_cpu or choice.leave(a, b.t()) is not None:
        return torch.mm(a, b, out=out)
    cpu.multiply(a, b, out)
    return out
