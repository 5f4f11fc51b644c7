"""What the tests of scaled_dot_product_attention share: gradients of two orders, their parity, layouts, precisions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from attention_cases import Attention
from parity import assert_parity
from torch import Tensor

import aigc_fast.functional as AF
from aigc_fast.runtime import native

DTYPES_OF_THE_KERNELS = [torch.float32, torch.bfloat16, torch.float16]
# The relative error that each may bring, forward and backward.
PRECISIONS = {"high": 2e-5, "medium": 1e-2}
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def every_gradient(compute: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients to query, key and value."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    output = compute(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient.to(output.dtype))]


def double_gradient(compute: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The gradients of a weighted sum of the gradients, to the output's gradient too."""
    inputs = [tensor.detach().requires_grad_() for tensor in (*tensors, gradient.to(tensors[0].dtype))]
    first = torch.autograd.grad(compute(*inputs[:3]), inputs[:3], inputs[3], create_graph=True)
    weights = [torch.linspace(-1, 1, grad.numel(), dtype=grad.dtype).view_as(grad) for grad in first]
    total = sum((weight * grad).sum() for weight, grad in zip(weights, first, strict=True))
    return list(torch.autograd.grad(total, inputs))


def assert_all_parity(
    case: Attention,
    tensors: list[Tensor],
    compute: Callable[..., list[Tensor]] = every_gradient,
    ours: Callable[..., Tensor] = AF.scaled_dot_product_attention,
    scale: float | None = None,
) -> None:
    arguments = case.arguments() | {"scale": scale}
    mask = arguments["attn_mask"]
    gradient = torch.randn(*tensors[0].shape[:3], tensors[2].shape[3])
    found = compute(lambda *inputs: ours(*inputs, **arguments), tensors, gradient)
    theirs = compute(lambda *inputs: case.expected(*inputs, mask, scale), tensors, gradient)
    exact = compute(lambda *inputs: case.expected(*inputs, mask, scale), [t.double() for t in tensors], gradient)
    for index, (a, b, c) in enumerate(zip(found, theirs, exact, strict=True)):
        assert_parity(a, b, c, f"{case}: result {index}")


def in_a_sea_of_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN before, between and after the rows, and strides that are far apart."""
    sea = torch.full([extent + 2 for extent in tensor.shape], math.nan, dtype=tensor.dtype)
    island = sea[1:-1, 1:-1, 1:-1, 1:-1]
    return island.copy_(tensor)


LAYOUTS = {
    "heads after lengths": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "lengths innermost": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "in a sea of NaN": in_a_sea_of_nan,
}
