"""What the tests of convolutions share: gradients of two orders and their parity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from convolution_cases import Convolution
from parity import assert_parity
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def functions(case: Convolution) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return getattr(AF, case.function), case.peer


def every_gradient(
    function: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor, **kwargs: Any
) -> list[Tensor]:
    """The output and the gradients to every tensor, cut off from the graphs that they came from."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, **kwargs)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient.to(output.dtype))]


def double_gradient(
    function: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor, **kwargs: Any
) -> list[Tensor]:
    """The gradients of a weighted sum of the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in (*tensors, gradient)]
    output = function(*leaves[:-1], **kwargs)
    first = torch.autograd.grad(output, leaves[:-1], leaves[-1], create_graph=True)
    weights = [torch.linspace(-1, 1, grad.numel(), dtype=grad.dtype).view_as(grad) for grad in first]
    total = sum((weight * grad).sum() for weight, grad in zip(weights, first, strict=True))
    return list(torch.autograd.grad(total, leaves[:2] + leaves[-1:]))


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def assert_all_parity(
    compute: Callable[..., list[Tensor]], case: Convolution, tensors: list[Tensor], gradient: Tensor
) -> None:
    ours, theirs = functions(case)
    found = compute(ours, tensors, gradient, **case.arguments)
    peer = compute(theirs, tensors, gradient, **case.arguments)
    with aigc_fast.backend("reference"):
        exact = compute(theirs, doubled(tensors), gradient.double(), **case.arguments)
    for index, (a, b, c) in enumerate(zip(found, peer, exact, strict=True)):
        assert_parity(a, b, c, f"{case}: result {index}")


def gradient_like_output(case: Convolution, tensors: list[Tensor]) -> Tensor:
    return torch.randn_like(functions(case)[1](*tensors, **case.arguments))


def channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))
