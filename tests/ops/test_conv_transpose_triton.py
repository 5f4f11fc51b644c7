"""Triton's kernels of convolutions in its interpreter: layouts, what is not finite, and what launches are told."""

from __future__ import annotations

import importlib.util
from typing import Any

import machine_code
import pytest
import torch
from convolution_cases import Convolution
from convolution_checks import channels_last, double_gradient, every_gradient, functions, gradient_like_output
from memory import far_apart
from parity import float32_precision, relative_error
from torch import Tensor
from watching import INTERPRETED, launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose.operators import conv_transpose_activation, conv_weight_gradient
from aigc_fast.ops.conv_transpose.reference import ACTIVATIONS
from aigc_fast.runtime.backends import BackendError

interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 is not set")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
IMAGES = Convolution(2, 8, 16, (4, 3), (3, 2), 2, 1)


def exact(tensors: list[Tensor], gradient: Tensor, case: Convolution) -> list[Tensor]:
    doubles = [tensor.double().contiguous() for tensor in tensors]
    return every_gradient(case.peer, doubles, gradient.double().contiguous(), **case.arguments)


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


LAYOUTS = {
    "channels last": (channels_last, channels_last),
    "input alone": (channels_last, torch.clone),
    "weight alone": (torch.clone, channels_last),
    "gaps": (with_gaps, with_gaps),
    "expanded": (lambda tensor: tensor[:1].expand(tensor.shape), torch.clone),
}


@interpreted
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpreted_layouts(layout: str, transposed: bool) -> None:
    case = IMAGES if transposed else Convolution(2, 16, 8, (6, 5), (3, 2), 2, 1, transposed=False)
    of_input, of_weight = LAYOUTS[layout]
    input, weight, bias = case.tensors()
    gradient = gradient_like_output(case, [input, weight, bias])
    tensors = [of_input(input), of_weight(weight), with_gaps(bias)]
    wanted = functions(case)[1](*tensors, **case.arguments)
    with aigc_fast.backend("triton"):
        found = every_gradient(functions(case)[0], tensors, of_input(gradient), **case.arguments)
    assert found[0].is_contiguous(memory_format=torch.channels_last) == (
        wanted.is_contiguous(memory_format=torch.channels_last)
    )
    for ours, expected in zip(found, exact(tensors, of_input(gradient), case), strict=True):
        assert relative_error(ours, expected) < 1e-6


@interpreted
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_interpreted_activations(activation: str) -> None:
    input, weight, bias = Convolution(2, 3, 5, (7,), 3, 2).tensors()
    bias = bias * torch.tensor([1e-3, 1.0, 30.0, -100.0, 1.0])
    args = (bias, (2,), (0,), (0,), (1,), 1, activation, 0.2)
    with aigc_fast.backend("triton"):
        found = conv_transpose_activation(input, weight, *args)
    plain = torch.conv_transpose1d(input.double(), weight.double(), bias.double(), 2)
    assert relative_error(found, ACTIVATIONS[activation](plain, 0.2)) < 1e-6


@interpreted
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_interpreted_what_is_not_finite_stays_where_it_comes() -> None:
    input = torch.randn(1, 2, 9)
    input[0, 0, 2], input[0, 1, 6] = float("nan"), float("inf")
    weight = torch.randn(2, 3, 3)
    expected = torch.relu(torch.conv_transpose1d(input, weight, stride=2))
    with aigc_fast.backend("triton"):
        found = conv_transpose_activation(input, weight, None, (2,), (0,), (0,), (1,), 1, "relu", 0.0)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@interpreted
def test_interpreted_second_derivatives() -> None:
    case = Convolution(1, 2, 3, (5,), 3, 2, 1)
    tensors = list(case.tensors())
    gradient = gradient_like_output(case, tensors)
    with aigc_fast.backend("triton"):
        found = double_gradient(functions(case)[0], tensors, gradient, **case.arguments)
    wanted = double_gradient(case.peer, [tensor.double() for tensor in tensors], gradient.double(), **case.arguments)
    for ours, expected in zip(found, wanted, strict=True):
        assert relative_error(ours, expected) < 1e-6


@interpreted
def test_interpreted_weight_gradients_in_parts() -> None:
    large, small = torch.randn(2, 1, 401), torch.randn(2, 3, 200)
    with aigc_fast.backend("triton"), launches() as launched:
        found = conv_weight_gradient(large, small, (3,), (2,), (0,), (1,), 1)
    expected = torch.nn.grad.conv1d_weight(large.double(), (3, 1, 3), small.double(), 2)
    assert relative_error(found, expected) < 1e-6
    assert launched == ["triton:_differentiate"]


@interpreted
def test_interpreted_offsets_beyond_32_bits() -> None:
    input, weight = far_apart(2, 3, 5, step=2**31 + 3), torch.randn(3, 4, 3)
    with aigc_fast.backend("triton"):
        found = every_gradient(AF.conv_transpose1d, [input, weight], torch.ones(2, 4, 11), stride=2)
    dense = [input.clone().double(), weight.double()]
    wanted = every_gradient(torch.conv_transpose1d, dense, torch.ones(2, 4, 11), stride=2)
    for ours, expected in zip(found, wanted, strict=True):
        assert relative_error(ours, expected) < 1e-6


@interpreted
def test_interpreted_choice_is_pytorchs_until_a_card_shows_a_gain() -> None:
    input, weight = torch.randn(2, 3, 5), torch.randn(3, 4, 3)
    told = aigc_fast.explain("conv_transpose1d", input, weight)
    assert told.chosen != "triton"
    assert "cuDNN is the choice until a card was measured" in told.reasons["triton"]
    with aigc_fast.backend("triton"):
        told = aigc_fast.explain("conv_transpose1d", input, weight)
    assert (told.chosen, told.detail) == ("triton", "a product over the taps of each phase, in float32")


@interpreted
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((torch.ones(1, 2, 5, dtype=torch.float64), torch.ones(2, 1, 3, dtype=torch.float64)), "torch.float64 is comp"),
        ((torch.ones(0, 2, 5), torch.ones(2, 1, 3)), "an argument has no elements"),
    ],
)
def test_interpreted_what_the_kernels_do_not_take(tensors: tuple[Tensor, Tensor], message: str) -> None:
    with aigc_fast.backend("triton"), pytest.raises(BackendError, match=f"triton: {message}"):
        AF.conv_transpose1d(*tensors)


@interpreted
def test_interpreted_arguments_are_checked_before_a_launch() -> None:
    input, weight = torch.ones(1, 2, 5), torch.ones(2, 1, 3)
    with aigc_fast.backend("triton"), launches() as launched:
        with pytest.raises(RuntimeError, match=r"weight has dtype torch\.bfloat16: expected"):
            AF.conv_transpose1d(input, weight.bfloat16())
        with pytest.raises(RuntimeError, match="weight is on meta: expected"):
            AF.conv_transpose1d(input, weight.to("meta"))
    assert not launched


def launched_with(dtype: torch.dtype) -> dict[str, Any]:
    from aigc_fast.ops.conv_transpose import triton
    from aigc_fast.ops.conv_transpose.operators import _conv_transpose_plan

    input, weight = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((2, 8, 5), (8, 8, 4)))
    plan = _conv_transpose_plan(input, weight, None, (2,), (1,), (0,), (1,), 1)
    with machine_code.launches() as found:
        triton.prepare_forward(input, weight, None, plan)(input, weight, None)
    return found[0].arguments


@needs_triton
def test_precision_is_pytorchs_switch() -> None:
    for level, wanted in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
        with float32_precision(level):
            assert launched_with(torch.float32)["PRECISION"] == wanted
