"""Convolutions with what comes before and after them in one call, against the same in parts in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from parity import relative_error
from torch import Tensor

import aigc_fast
from aigc_fast.ops.conv_transpose import choice, operators
from aigc_fast.ops.conv_transpose.surrounded import NOTHING, Before, surrounded
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import FUNCTIONS

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason="no native library")

CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
# Input, weight, stride, padding, dilation.
PLAIN = {
    "windows": ((2, 32, 37, 41), (48, 32, 3, 3), 1, 1, 1),
    "windows of a row": ((1, 128, 331), (112, 128, 7), 1, 9, 3),
    "strided windows": ((2, 64, 40, 38), (64, 64, 4, 4), 2, 1, 1),
    "over the taps": ((2, 24, 400), (40, 24, 11), 1, 5, 1),
    "over the taps, strided": ((3, 17, 33, 31), (40, 17, 3, 3), 2, 1, 1),
    "a pixel's taps": ((2, 48, 517), (80, 48, 1), 1, 0, 1),
    "three axes": ((2, 20, 9, 17, 19), (24, 20, 3, 3, 3), 1, 1, 1),
    "depthwise": ((2, 40, 23, 37), (40, 1, 5, 5), 1, 2, 1),
}
FEW = {
    "few outputs": ((2, 32, 53, 47), (3, 32, 3, 3), 1, 1, 1),
    "few inputs": ((2, 3, 53, 47), (24, 3, 3, 3), 1, 1, 1),
}
MIRRORED = {
    "windows": ((2, 32, 37, 41), (48, 32, 3, 3), (1, 1, 1, 1)),
    "windows, uneven": ((1, 64, 33, 35), (64, 64, 3, 3), (2, 0, 1, 2)),
    "over the taps": ((1, 24, 400), (40, 24, 7), (6, 0)),
    "over the taps, as far as it goes": ((2, 24, 5), (80, 24, 7), (4, 4)),
    "a large map in parts": ((1, 16, 217, 231), (24, 16, 5, 5), (2, 2, 2, 2)),
    "windows of a row": ((1, 128, 331), (112, 128, 7), (3, 3)),
    "depthwise": ((2, 40, 23, 37), (40, 1, 5, 5), (2, 2, 2, 2)),
}
ENTRIES = {"none": 0.0, "relu": 0.0, "leaky_relu": 0.2, "elu": 0.7, "silu": 0.0, "gelu": 0.0}


@pytest.fixture(autouse=True)
def wherever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our kernels take what they can, be PyTorch's faster or not."""
    ops = operators.conv_activation, operators.conv_transpose_activation
    monkeypatch.setattr(choice, "forward_slower", lambda *args: None)
    for op in ops:
        op.choice.forget()
    yield
    for op in ops:
        op.choice.forget()


def made(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


def check(found: Tensor | None, plain: Callable[..., Tensor], *tensors: Tensor) -> None:
    stock, expected = plain(*tensors), plain(*(tensor.double() for tensor in tensors))
    assert found is not None
    assert (found.shape, found.stride()) == (stock.shape, stock.stride())
    assert relative_error(found, expected) <= max(2 * relative_error(stock, expected), 1e-6)


def sizes_of(case: tuple) -> tuple:
    shape, weight, *sizes = case
    return *((size,) * (len(shape) - 2) for size in sizes), shape[1] // weight[1]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", PLAIN | FEW)
@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "channels_last"])
def test_an_activation_before_and_after(name: str, entry: str, turned: bool) -> None:
    case, slope = (PLAIN | FEW)[name], ENTRIES[entry]
    input, weight, bias = made(*case[:2], case[1][:1])
    if turned and input.dim() == 4:
        input = input.contiguous(memory_format=torch.channels_last)
    sizes = sizes_of(case)

    def plain(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output = CONV[input.dim() - 2](FUNCTIONS[entry](input, slope), weight, bias, *sizes)
        return torch.nn.functional.leaky_relu(output, 0.1)

    found = surrounded(input, weight, bias, sizes, False, Before(entry, slope), ("leaky_relu", 0.1))
    check(found, plain, input, weight, bias)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "channels_last"])
def test_something_is_added(name: str, turned: bool) -> None:
    case = PLAIN[name]
    input, weight = made(*case[:2])
    sizes = sizes_of(case)
    if turned and input.dim() == 4:
        input = input.contiguous(memory_format=torch.channels_last)
    added = torch.randn_like(CONV[input.dim() - 2](input, weight, None, *sizes))
    kept = added.clone()

    def plain(input: Tensor, weight: Tensor, added: Tensor) -> Tensor:
        return torch.relu(CONV[input.dim() - 2](input, weight, None, *sizes)) + added

    found = surrounded(input, weight, None, sizes, False, NOTHING, ("relu", 0.0), added)
    check(found, plain, input, weight, added)
    assert torch.equal(added, kept)


@pytest.mark.parametrize("name", MIRRORED)
@pytest.mark.parametrize("entry", ["none", "elu"])
@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "channels_last"])
def test_the_border_mirrors_the_input(name: str, entry: str, turned: bool) -> None:
    shape, kernel, border = MIRRORED[name]
    input, weight = made(shape, kernel)
    if turned and input.dim() == 4:
        input = input.contiguous(memory_format=torch.channels_last)
    axes = len(shape) - 2
    sizes = (1,) * axes, (0,) * axes, (1,) * axes, shape[1] // kernel[1]

    def plain(input: Tensor, weight: Tensor) -> Tensor:
        input = torch.nn.functional.pad(FUNCTIONS[entry](input, 1.0), border, "reflect")
        return CONV[axes](input, weight, None, *sizes)

    check(surrounded(input, weight, None, sizes, False, Before(entry, 1.0, border)), plain, input, weight)


@pytest.mark.parametrize("channels", [(64, 32, 48), (32, 2, 3)], ids=["windows", "few outputs"])
def test_a_transposed_convolution(channels: tuple[int, int, int]) -> None:
    of_input, of_output, size = channels
    input, weight, bias = made((2, of_input, size, size + 1), (of_input, of_output, 4, 4), (of_output,))
    sizes = (2, 2), (1, 1), (0, 0), (1, 1), 1

    def plain(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.conv_transpose2d(torch.relu(input), weight, bias, 2, 1)

    check(surrounded(input, weight, bias, sizes, True, Before("relu")), plain, input, weight, bias)


def test_values_that_windows_would_spread() -> None:
    input, weight = made((2, 32, 37, 41), (48, 32, 3, 3))
    input[0, 3, 5, 7] = float("inf")
    added = torch.randn(2, 48, 37, 41)
    sizes = (1, 1), (1, 1), (1, 1), 1
    found = surrounded(input, weight, None, sizes, False, Before("leaky_relu", 0.1), added=added)
    expected = torch.nn.functional.conv2d(torch.nn.functional.leaky_relu(input, 0.1), weight, None, 1, 1) + added
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-4, rtol=1e-4)


def test_weights_that_padding_would_spread() -> None:
    input, weight = made((2, 32, 37, 41), (48, 32, 3, 3))
    weight[7, 3, 1, 2] = float("inf")
    added = torch.randn(2, 48, 37, 41)
    sizes = (1, 1), (1, 1), (1, 1), 1
    found = surrounded(input, weight, None, sizes, False, Before("leaky_relu", 0.1), added=added)
    expected = torch.nn.functional.conv2d(torch.nn.functional.leaky_relu(input, 0.1), weight, None, 1, 1) + added
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-4, rtol=1e-4)


def declined(**changes: object) -> Tensor | None:
    """What a call gives that would be one call but for the changes."""
    input, weight = made((2, 32, 37, 41), (48, 32, 3, 3))
    given = {"input": input, "weight": weight, "bias": None, "sizes": ((1, 1), (1, 1), (1, 1), 1), "transposed": False}
    return surrounded(**{**given, "before": Before("relu"), **changes})


def test_what_is_made_in_parts() -> None:
    assert declined() is not None
    assert declined(input=torch.randn(2, 32, 37, 41, requires_grad=True)) is None
    assert declined(input=torch.randn(2, 32, 37, 41, dtype=torch.float64)) is None
    assert declined(before=Before("sigmoid")) is None
    assert declined(added=torch.randn(2, 48, 37, 1).expand(2, 48, 37, 41)) is None
    assert declined(added=torch.randn(2, 48, 37, 41).contiguous(memory_format=torch.channels_last)) is None
    with aigc_fast.backend("reference"):
        assert declined() is None
