"""conv_transpose1d/2d/3d and conv1d/2d/3d against PyTorch in float64: layouts, geometries, weights that change."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as TF
from convolution_cases import FEW_CONVOLUTIONS, PLAIN, TRANSPOSED, Convolution
from convolution_checks import (
    assert_all_parity,
    channels_last,
    doubled,
    every_gradient,
    functions,
    gradient_like_output,
    needs_native,
)
from parity import DTYPES, assert_parity, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native

ONE_PIXEL = [
    TRANSPOSED[0],
    Convolution(50, 401, 5, (1,), 3),
    Convolution(2, 17, 3, (1, 1, 1), (2, 3, 1), (1, 2, 1)),
    Convolution(5, 16, 7, (1, 1), (4, 3), 2),
]
# Maps whose windows are transformed in several strips, the last of them a smaller one.
STRIPS = [
    Convolution(1, 36, 32, (9001,), 3, 1, 1, transposed=False),
    Convolution(2, 32, 40, (70, 67), 3, 1, 1, transposed=False),
    Convolution(1, 32, 48, (93, 77), 4, 2, 1, transposed=False),
    Convolution(1, 32, 33, (75, 81), 4, 2, 1),
    Convolution(1, 36, 32, (15, 13, 17), 3, (1, 1, 2), 1, transposed=False),
    Convolution(2, 64, 64, (3, 130), (1, 3), 1, (0, 1), groups=2, transposed=False),
]
# Rows whose kernel is cut into pieces, or whose windows lie within each other.
LONG_ROWS = [
    Convolution(2, 32, 40, (301,), 7, 1, 3, transposed=False),
    Convolution(1, 36, 32, (5000,), 11, 1, 15, dilation=3, transposed=False),
    Convolution(2, 33, 32, (97,), 5, 1, 7, dilation=5, transposed=False),
    Convolution(1, 96, 100, (1111,), 3, 1, 9, dilation=9, transposed=False),
    Convolution(1, 32, 36, (203,), 8, 1, 2),
    Convolution(1, 32, 33, (150,), 9, 1, 8, dilation=2),
    Convolution(2, 48, 32, (4, 61), (1, 10), 1, (0, 4), groups=2, transposed=False),
    Convolution(1, 32, 32, (2, 3, 80), (1, 1, 6), 1, (0, 0, 5), dilation=(1, 1, 2), transposed=False),
]


@pytest.mark.parametrize("case", FEW_CONVOLUTIONS, ids=str)
def test_float64(case: Convolution) -> None:
    tensors = list(case.tensors(torch.float64))
    assert_all_parity(every_gradient, case, tensors, gradient_like_output(case, tensors))


@needs_native
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", [*ONE_PIXEL, *FEW_CONVOLUTIONS], ids=str)
def test_a_weight_used_again_and_written_to_on_every_level(case: Convolution, dtype: str, isa: str) -> None:
    input, weight, bias = case.tensors(DTYPES[dtype])
    weights = [weight, channels_last(weight)]
    ours, theirs = functions(case)
    with aigc_fast.backend("cpu"), torch.no_grad():
        for use in range(8):
            if use == 4:
                weights[0].mul_(-2)
                weights[1].mul_(3)
            tensors = [channels_last(input) if use % 4 > 1 else input, weights[use % 2], bias]
            found, peer = ours(*tensors, **case.arguments), theirs(*tensors, **case.arguments)
            assert_parity(found, peer, theirs(*doubled(tensors), **case.arguments), f"{case}: use {use}")


@needs_native
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize("case", [*STRIPS, *LONG_ROWS], ids=str)
def test_strips_and_long_rows_on_every_level(case: Convolution, layout: Callable[[Tensor], Tensor], isa: str) -> None:
    tensors = [layout(tensor) for tensor in case.tensors()]
    with aigc_fast.backend("cpu"):
        assert_all_parity(every_gradient, case, tensors, layout(gradient_like_output(case, tensors)))


def every_second(tensor: Tensor) -> Tensor:
    wide = torch.randn(*tensor.shape[:-1], tensor.shape[-1] * 2 + 1)
    wide[..., 1::2] = tensor
    return wide[..., 1::2]


def offset_by_one(tensor: Tensor) -> Tensor:
    flat = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    flat[1:] = tensor.flatten()
    return flat[1:].view(tensor.shape)


def transposed_memory(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


LAYOUTS = [channels_last, every_second, offset_by_one, transposed_memory]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[9], TRANSPOSED[19], PLAIN[1]], ids=str)
def test_layouts(case: Convolution, layout: Callable[[Tensor], Tensor], backend: str) -> None:
    input, weight, bias = case.tensors()
    gradient = gradient_like_output(case, [input, weight, bias])
    assert_all_parity(every_gradient, case, [layout(input), layout(weight), bias], layout(gradient))


def test_channels_last_input_gives_channels_last_output(backend: str) -> None:
    input, weight, bias = TRANSPOSED[1].tensors()
    input = input.contiguous(memory_format=torch.channels_last)
    output = AF.conv_transpose2d(input, weight, bias, 2, 1)
    expected = TF.conv_transpose2d(input, weight, bias, 2, 1)
    assert output.stride() == expected.stride()


@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[9], TRANSPOSED[10], PLAIN[1], PLAIN[8]], ids=str)
def test_without_bias_and_without_batch(case: Convolution, backend: str) -> None:
    input, weight, _ = case.tensors()
    ours, theirs = functions(case)
    for x in (input, input[0]):
        found, peer = ours(x, weight, **case.arguments), theirs(x, weight, **case.arguments)
        assert_parity(found, peer, theirs(x.double(), weight.double(), **case.arguments))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1], ids=["input", "weight"])
@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[3], TRANSPOSED[9], PLAIN[3]], ids=str)
def test_nan_and_infinity_go_where_pytorch_sends_them(
    case: Convolution, where: int, value: float, backend: str
) -> None:
    input, weight, bias = tensors = case.tensors()
    tensors[where][0, 0, ..., tensors[where].shape[-1] // 2] = value
    ours, theirs = functions(case)
    found, expected = ours(input, weight, bias, **case.arguments), theirs(input, weight, bias, **case.arguments)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@st.composite
def geometries(draw: st.DrawFn) -> Convolution:
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.tuples(*[st.integers(low, high)] * dims)

    groups, transposed = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.booleans())
    kernel, stride, dilation = draw(each(1, 7 if dims < 3 else 3)), draw(each(1, 4)), draw(each(1, 3))
    padding = draw(each(0, 3))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    if transposed:
        # The smallest input that gives an output of at least one element.
        least = [
            max(1, -(-(1 + 2 * p - e - o) // s) + 1) for p, e, o, s in zip(padding, extent, extra, stride, strict=True)
        ]
    else:
        least = [max(1, e - 2 * p) for e, p in zip(extent, padding, strict=True)]
    size = tuple(low + draw(st.integers(0, 9 if dims < 3 else 3)) for low in least)
    channels_in, channels_out = (groups * draw(st.sampled_from([1, 2, 5, 16, 17])) for _ in range(2))
    batch = draw(st.integers(1, 3))
    return Convolution(
        batch, channels_in, channels_out, size, kernel, stride, padding, extra, dilation, groups, transposed
    )


@needs_native
@hypothesis.settings(max_examples=120)
@hypothesis.given(geometries())
def test_random_geometry(case: Convolution) -> None:
    tensors = list(case.tensors())
    with aigc_fast.backend("cpu"):
        assert_all_parity(every_gradient, case, tensors, gradient_like_output(case, tensors))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_a_large_input_stays_where_it_is_seen(name: str, kernel: int, backend: str) -> None:
    ours, theirs = getattr(AF, name), getattr(TF, name)
    input, weight = torch.randn(8, 64, 24, 24), torch.randn(64, 64, kernel, kernel) / 32
    without = input.double()
    input[0, 0, 16, 16], without[0, 0, 16, 16] = -1e9, 0
    expected = theirs(input.double(), weight.double(), stride=2, padding=1)
    blind = expected == theirs(without, weight.double(), stride=2, padding=1)
    found = ours(input, weight, stride=2, padding=1)
    assert blind.float().mean() > 0.9
    assert relative_error(found[blind], expected[blind]) < 2e-6


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_image_has_pytorchs_strides(name: str, channels_last: bool, backend: str) -> None:
    image = torch.randn(40, 40, 32).permute(2, 0, 1)
    batch = image.unsqueeze(0).contiguous(memory_format=torch.channels_last) if channels_last else image.unsqueeze(0)
    weight = torch.randn(32, 32, 3, 3)
    for input in (image, batch):
        assert getattr(AF, name)(input, weight).stride() == getattr(TF, name)(input, weight).stride()


def test_autocast_takes_mixed_dtypes(backend: str) -> None:
    input, weight, bias = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 4, 4).bfloat16(), torch.randn(16)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = AF.conv2d(input, weight, bias), TF.conv2d(input, weight, bias)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert relative_error(found, expected) < 1e-2


def test_lazily_negated_tensors(backend: str) -> None:
    values = torch.randn(2, 16, 9, 9, dtype=torch.complex64)
    input, weight = values.conj().imag, torch.randn(16, 16, 3, 3, dtype=torch.complex64).conj().imag
    assert input.is_neg()
    assert weight.is_neg()
    expected = TF.conv_transpose2d(-values.imag, weight.clone(), stride=2)
    assert relative_error(AF.conv_transpose2d(input, weight, stride=2), expected) < 1e-5
    gradients = []
    for function in (AF.conv_transpose2d, TF.conv_transpose2d):
        leaf = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
        gradients.append(torch.autograd.grad(function(input, leaf, stride=2).square().sum(), leaf)[0])
    assert relative_error(*gradients) < 1e-5


def test_threads_give_the_same_numbers(backend: str) -> None:
    case = TRANSPOSED[1]
    tensors = list(case.tensors())
    gradient = gradient_like_output(case, tensors)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(every_gradient(AF.conv_transpose2d, tensors, gradient, **case.arguments))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (2, 3, 1, 1), (1, 1, 9, 1), (2, 3, 9, 9), (3, 1, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("formats", [(a, b) for a in (0, 1) for b in (0, 1)])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_the_layout_is_pytorchs(name: str, formats: tuple[int, int], shape: tuple[int, ...]) -> None:
    memory = (torch.contiguous_format, torch.channels_last)
    channels = (shape[1], 8) if name == "conv_transpose2d" else (8, shape[1])
    x = torch.randn(shape).contiguous(memory_format=memory[formats[0]]).to(memory_format=memory[formats[0]])
    weight = torch.randn(*channels, 3, 3).to(memory_format=memory[formats[1]])
    with aigc_fast.backend("auto" if native.cpu_reason() else "cpu"):
        found = getattr(AF, name)(x, weight, None, 1, 1)
    expected = getattr(TF, name)(x, weight, None, 1, 1)
    assert found.stride() == expected.stride()
