"""Convolutions that end in an activation, in one call."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as TF
from convolution_cases import PLAIN, TRANSPOSED, Convolution
from convolution_checks import double_gradient, doubled, every_gradient, functions
from parity import assert_parity, opcheck
from torch import Tensor

import aigc_fast
from aigc_fast.ops.conv_transpose import operators as conv_ops

ACTIVATIONS = {
    "none": lambda y: y,
    "relu": torch.relu,
    "leaky_relu": lambda y: TF.leaky_relu(y, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def with_activation(case: Convolution, activation: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The op that ends in an activation, and PyTorch's two."""
    stride, padding, dilation, groups, *output_padding = (
        (value,) * len(case.size) if isinstance(value, int) and name != "groups" else value
        for name, value in case.arguments.items()
    )
    sizes = (stride, padding, *output_padding, dilation, groups)
    op = conv_ops.conv_transpose_activation if case.transposed else conv_ops.conv_activation
    theirs = functions(case)[1]
    return (
        lambda *tensors: op(*tensors, *sizes, activation, 0.2),
        lambda *tensors: ACTIVATIONS[activation](theirs(*tensors, **case.arguments)),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[3], TRANSPOSED[9], PLAIN[1]], ids=str)
def test_activation_in_the_same_call(case: Convolution, activation: str, backend: str) -> None:
    ours, theirs = with_activation(case, activation)
    tensors = list(case.tensors())
    tensors[0][0, 0] = math.nan
    found, expected, exact = ours(*tensors), theirs(*tensors), theirs(*doubled(tensors))
    assert torch.equal(found.isnan(), expected.isnan())
    assert_parity(found.nan_to_num(0), expected.nan_to_num(0), exact.nan_to_num(0))


@pytest.mark.parametrize("compute", [every_gradient, double_gradient])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[3], PLAIN[1]], ids=str)
def test_gradients_through_an_activation_in_the_same_call(
    case: Convolution, activation: str, compute: Callable[..., list[Tensor]], backend: str
) -> None:
    ours, theirs = with_activation(case, activation)
    tensors = list(case.tensors())
    # Away from the kink of a ReLU, on whose sides rounding would put two programs differently.
    exact_output = theirs(*doubled(tensors))
    gradient = torch.randn(exact_output.shape) * (exact_output.abs() > 1e-3)
    found, peer = compute(ours, tensors, gradient), compute(theirs, tensors, gradient)
    with aigc_fast.backend("reference"):
        exact = compute(theirs, doubled(tensors), gradient.double())
    for index, (a, b, c) in enumerate(zip(found, peer, exact, strict=True)):
        assert_parity(a, b, c, f"{case}: result {index}")


@pytest.mark.parametrize("case", [TRANSPOSED[1], PLAIN[1]], ids=str)
def test_opcheck_of_the_activation_ops(case: Convolution) -> None:
    geometry = [case.stride, case.padding, *([case.output_padding] if case.transposed else []), case.dilation]
    args = [*case.tensors(), *[[value] * len(case.size) for value in geometry], case.groups, "leaky_relu", 0.2]
    op = torch.ops.aigc_fast.conv_transpose_activation if case.transposed else torch.ops.aigc_fast.conv_activation
    opcheck(op.default, tuple(args))
