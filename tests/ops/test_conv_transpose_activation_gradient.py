"""What a convolution's activation lets through of a gradient, and the bias's share, in one kernel."""

from __future__ import annotations

import math

import pytest
import torch
from convolution_checks import needs_native

import aigc_fast
from aigc_fast.ops.conv_transpose import cpu
from aigc_fast.runtime.activations import GRADIENTS_FROM_OUTPUT

ACTIVATIONS = [name for name in GRADIENTS_FROM_OUTPUT if name != "none"]
SHAPES = [(3, 5, 7, 9), (2, 17, 33), (1, 64, 20, 31), (4, 1, 1, 1), (2, 3, 4, 5, 6), (1, 70, 300, 2)]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _tensors(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[torch.Tensor]:
    layout = LAYOUTS[len(shape)] if channels_last else torch.contiguous_format
    return [torch.randn(shape).clamp(-1, 1).to(dtype).contiguous(memory_format=layout) for _ in range(2)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_float64_on_every_level(activation: str, dtype: torch.dtype, channels_last: bool, isa: str) -> None:
    for shape in SHAPES:
        if channels_last and len(shape) == 3:
            continue
        gradient, output = _tensors(shape, dtype, channels_last)
        inner, of_bias = cpu.through_activation(gradient, output, activation, 0.2)
        expected = GRADIENTS_FROM_OUTPUT[activation](gradient.double(), output.double(), 0.2)
        assert inner.stride() == output.stride()
        torch.testing.assert_close(inner, expected.to(dtype))
        dims = [dim for dim in range(len(shape)) if dim != 1]
        # Roundings of the sums, and the last one.
        addends = torch.finfo(torch.float32).eps * math.sqrt(output.numel() / shape[1]) * expected.abs().sum(dims)
        last = torch.finfo(dtype).eps * expected.sum(dims).abs()
        assert ((of_bias.double() - expected.sum(dims)).abs() <= addends + last).all()


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_is_as_in_pytorch(activation: str) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0])
    gradient, output = (each.reshape(1, 1, 7, 7).contiguous() for each in torch.meshgrid(values, values, indexing="ij"))
    inner, _ = cpu.through_activation(gradient, output, activation, 0.2)
    torch.testing.assert_close(inner, GRADIENTS_FROM_OUTPUT[activation](gradient, output, 0.2), equal_nan=True)


@needs_native
def test_other_layouts_are_left() -> None:
    gradient, output = _tensors((2, 6, 5, 7), torch.float32, False)
    assert cpu.through_activation(gradient.contiguous(memory_format=torch.channels_last), output, "relu", 0) is None
    assert cpu.through_activation(gradient[:1].expand(2, -1, -1, -1), output, "relu", 0) is None
    assert cpu.through_activation(gradient.double(), output, "relu", 0) is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_a_layer_with_and_without_a_bias(bias: bool, transposed: bool) -> None:
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layers = torch.nn.Sequential(kind(20, 24, 4, 2, 1, bias=bias), torch.nn.LeakyReLU(0.2)).double()
    input = torch.randn(3, 20, 12, 10, dtype=torch.double)
    wanted = [parameter.detach().clone() for parameter in _gradients(layers, input)]
    ours = aigc_fast.optimize(layers.float())
    for found, expected in zip(_gradients(ours, input.float()), wanted, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def _gradients(layers: torch.nn.Module, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(layers(input).square().sum(), list(layers.parameters()))
