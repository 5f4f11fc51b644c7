"""conv_transpose1d/2d/3d and conv1d/2d/3d against PyTorch in float64: every gradient, layout, dtype, backend, level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from cases import DTYPES, PLAIN, TRANSPOSED, Convolution, assert_parity, float32_precision, opcheck, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import choice
from aigc_fast.ops.conv_transpose import operators as conv_ops
from aigc_fast.ops.conv_transpose.plan import make_plan
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import BackendError

FEW = [*(TRANSPOSED[i] for i in (1, 14, 16, 18, 22, 29, 30)), *(PLAIN[i] for i in (1, 6, 13))]
ONE_PIXEL = [
    TRANSPOSED[0],
    Convolution(50, 401, 5, (1,), 3),
    Convolution(2, 17, 3, (1, 1, 1), (2, 3, 1), (1, 2, 1)),
    Convolution(5, 16, 7, (1, 1), (4, 3), 2),
]
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


@pytest.mark.parametrize("case", FEW, ids=str)
def test_float64(case: Convolution) -> None:
    tensors = list(case.tensors(torch.float64))
    assert_all_parity(every_gradient, case, tensors, gradient_like_output(case, tensors))


@needs_native
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", [*ONE_PIXEL, *FEW], ids=str)
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


@pytest.mark.parametrize("case", [*FEW, TRANSPOSED[10], PLAIN[10]], ids=str)
def test_double_backward(case: Convolution, backend: str) -> None:
    tensors = list(case.tensors())
    assert_all_parity(double_gradient, case, tensors, gradient_like_output(case, tensors))


def channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


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


@pytest.mark.parametrize("case", [TRANSPOSED[1], PLAIN[1]], ids=str)
def test_expanded_input_and_gradient(case: Convolution, backend: str) -> None:
    input, weight, bias = case.tensors()
    input = input[:1].expand(3, *input.shape[1:])
    gradient = torch.randn(()).expand(gradient_like_output(case, [input, weight, bias]).shape)
    ours, theirs = functions(case)
    found = every_gradient(ours, [input, weight, bias], gradient, **case.arguments)
    peer = every_gradient(theirs, [input, weight, bias], gradient, **case.arguments)
    exact = every_gradient(theirs, doubled([input, weight, bias]), gradient.double(), **case.arguments)
    for a, b, c in zip(found, peer, exact, strict=True):
        assert_parity(a, b, c)


@pytest.mark.parametrize("case", [TRANSPOSED[1], PLAIN[1]], ids=str)
@pytest.mark.parametrize("wanted", range(3), ids=["input", "weight", "bias"])
def test_one_gradient_alone(case: Convolution, wanted: int, backend: str) -> None:
    tensors = list(case.tensors())
    gradient = gradient_like_output(case, tensors)
    tensors[wanted].requires_grad_()
    ours, theirs = functions(case)
    (found,) = torch.autograd.grad(ours(*tensors, **case.arguments), tensors[wanted], gradient)
    (peer,) = torch.autograd.grad(theirs(*tensors, **case.arguments), tensors[wanted], gradient)
    tensors = [tensor.detach().double() for tensor in tensors]
    tensors[wanted].requires_grad_()
    (exact,) = torch.autograd.grad(theirs(*tensors, **case.arguments), tensors[wanted], gradient.double())
    assert_parity(found, peer, exact)


@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[9], TRANSPOSED[10], PLAIN[1], PLAIN[8]], ids=str)
def test_without_bias_and_without_batch(case: Convolution, backend: str) -> None:
    input, weight, _ = case.tensors()
    ours, theirs = functions(case)
    for x in (input, input[0]):
        found, peer = ours(x, weight, **case.arguments), theirs(x, weight, **case.arguments)
        assert_parity(found, peer, theirs(x.double(), weight.double(), **case.arguments))


@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[9], PLAIN[1]], ids=str)
def test_empty_batch(case: Convolution, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("a forced backend refuses with its own reasons")
    input, weight, bias = case.tensors()
    tensors = [input[:0], weight, bias]
    ours, theirs = functions(case)
    expected = theirs(*tensors, **case.arguments)
    found = every_gradient(ours, tensors, torch.ones_like(expected), **case.arguments)
    peer = every_gradient(theirs, tensors, torch.ones_like(expected), **case.arguments)
    for a, b in zip(found, peer, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_strings_for_padding(backend: str) -> None:
    input, weight, bias = torch.randn(2, 3, 9, 8), torch.randn(5, 3, 4, 3), torch.randn(5)
    for padding in ("valid", "same"):
        torch.testing.assert_close(
            AF.conv2d(input, weight, bias, padding=padding), TF.conv2d(input, weight, bias, padding=padding)
        )


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


@pytest.mark.parametrize("transposed", [True, False])
def test_gradcheck_of_the_reference(transposed: bool) -> None:
    case = Convolution(2, 4, 6, (3, 4), 3, 2, 1, 1 if transposed else 0, 1, 2, transposed)
    tensors = [tensor.requires_grad_() for tensor in case.tensors(torch.float64)]
    function = functions(case)[0]
    with aigc_fast.backend("reference"):
        assert torch.autograd.gradcheck(lambda *t: function(*t, **case.arguments), tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *t: function(*t, **case.arguments), tensors, fast_mode=True)


# Depths and widths around what a tile of AMX holds: 16 pairs of channels, 16 pixels, 16 output channels.
WIDE = [
    Convolution(4, 64, 32, (8, 8), 4, 2, 1),
    Convolution(2, 8, 17, (5, 4), 4, 2, 1),
    Convolution(1, 34, 33, (3, 35), 4, 2, 1),
    Convolution(1, 100, 70, (6, 17), 3, 2, 1, 1),
    Convolution(2, 33, 24, (4, 4), 5, 3, 2, 1),
    Convolution(1, 48, 130, (150,), 8, 4, 2),
    Convolution(2, 32, 20, (2, 3, 9), 4, 2, 1),
    Convolution(2, 64, 48, (7, 20), 4, 2, 1, groups=2),
    Convolution(1, 66, 24, (9, 33), 3, 1, 1, groups=2),
    Convolution(2, 96, 64, (10, 12), 3, 1, 1, transposed=False),
    Convolution(2, 40, 64, (11, 21), 4, 2, 1, transposed=False),
    Convolution(1, 12, 40, (20, 30), 3, 1, 2, dilation=2, transposed=False),
]


@pytest.fixture(params=[("highest", 2e-6), ("high", 2e-5), ("medium", 6e-3)], ids=lambda param: param[0])
def precision_limit(request: pytest.FixtureRequest) -> Iterator[float]:
    """The relative error that a setting of `torch.set_float32_matmul_precision` may bring, which is in force."""
    precision, limit = request.param
    with float32_precision(precision):
        yield limit


@needs_native
@pytest.mark.parametrize("case", [*WIDE, *FEW], ids=str)
def test_precision_on_every_level(case: Convolution, precision_limit: float, isa: str) -> None:
    ours, theirs = functions(case)
    tensors = list(case.tensors())
    exact = theirs(*doubled(tensors), **case.arguments)
    with aigc_fast.backend("cpu"):
        assert relative_error(ours(*tensors, **case.arguments), exact) < precision_limit


@needs_native
@pytest.mark.parametrize("where", [0, 1], ids=["input", "weight"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 3.4e38])
def test_values_that_cannot_be_split_on_every_level(value: float, where: int, isa: str) -> None:
    case = WIDE[0]
    tensors = list(case.tensors())
    tensors[where][1, 2, 3, 3] = value
    expected = TF.conv_transpose2d(*tensors, **case.arguments)
    with float32_precision("high"), aigc_fast.backend("cpu"):
        found = AF.conv_transpose2d(*tensors, **case.arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3, equal_nan=True)


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


# Where PyTorch's weight gradient, or more of it, reads or writes where it must not; see `Convolution.padding_garbles`.
GARBLED = [
    Convolution(3, 31, 16, (4, 4, 7), (4, 4, 1), (1, 1, 2), (3, 2, 0), (0, 1, 0), (1, 2, 1)),
    Convolution(8, 31, 48, (4, 1, 2), (7, 1, 1), (2, 1, 3), (5, 0, 0), 0, (1, 1, 2)),
    Convolution(2, 16, 8, (5, 5, 5), (5, 3, 5), (1, 3, 2), (4, 1, 4)),
    Convolution(2, 16, 64, (1,), 5, 3, 2),
    Convolution(2, 6, 6, (1, 3), 3, (2, 1), 1, groups=6),
    Convolution(8, 3, 16, (1, 7, 7), (5, 7, 3), (1, 2, 2), (4, 3, 0), transposed=False),
    Convolution(1, 64, 96, (2, 7, 7), (4, 4, 1), (2, 3, 1), (3, 0, 0), groups=2, transposed=False),
    Convolution(1, 64, 64, (7, 6, 5), (7, 6, 5), (2, 1, 3), (3, 0, 0), groups=2, transposed=False),
    Convolution(8, 2, 64, (1,), 3, 2, 1, transposed=False),
    Convolution(2, 16, 16, (2,), 2, 3, 1, transposed=False),
    Convolution(8, 3, 4, (2, 2), 2, 3, (0, 1), transposed=False),
    Convolution(2, 32, 24, (1, 1), 3, 1, 1, transposed=False),
    Convolution(2, 12, 12, (1, 2), 3, 1, 1, groups=12, transposed=False),
    # No tap meets anything: PyTorch's convolution itself dies of these in bfloat16 and float16.
    Convolution(2, 3, 11, (4, 8, 1), (1, 3, 1), (2, 4, 2), (4, 2, 1), dilation=(4, 4, 3), transposed=False),
    Convolution(3, 8, 64, (1, 8, 1), (1, 2, 1), (1, 4, 3), (5, 0, 5), dilation=2, transposed=False),
]
in_every_dtype = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])


def make_memory_dirty() -> None:
    """Leaves NaN where PyTorch allocates next."""
    for size in (16, 128, 1024, 8192, 65536):
        torch.full((size,), math.nan)


@in_every_dtype
@pytest.mark.parametrize("case", GARBLED, ids=str)
def test_gradients_where_pytorchs_are_garbage(case: Convolution, dtype: str, backend: str) -> None:
    if backend == "cpu" and dtype == "fp16":
        pytest.skip("the kernels take float32 and bfloat16")
    assert case.padding_garbles
    for layout in (torch.Tensor.contiguous, channels_last):
        input, *others = case.tensors(DTYPES[dtype])
        tensors = [layout(input), *others]
        gradient = layout(gradient_like_output(case, tensors))
        make_memory_dirty()
        assert_all_parity(every_gradient, case, tensors, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in GARBLED if case.batch == 2], ids=str)
def test_double_backward_where_pytorchs_gradients_are_garbage(
    case: Convolution, dtype: torch.dtype, backend: str
) -> None:
    tensors = list(case.tensors(dtype))
    make_memory_dirty()
    assert_all_parity(double_gradient, case, tensors, gradient_like_output(case, tensors))


@needs_native
@pytest.mark.parametrize("case", GARBLED, ids=str)
def test_gradients_where_pytorchs_are_garbage_on_every_level(case: Convolution, isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensors = list(case.tensors(dtype))
        make_memory_dirty()
        assert_all_parity(every_gradient, case, tensors, gradient_like_output(case, tensors))


def padded_weight_gradients(profile: torch.profiler.profile) -> int:
    """How many weight gradients with padding PyTorch computed."""
    events = profile.profiler.kineto_results.events()
    inputs = [event.concrete_inputs() for event in events if event.name() == "aten::convolution_backward"]
    return sum(any(given[5]) and given[-1][1] for given in inputs)


@in_every_dtype
@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("case", GARBLED, ids=str)
def test_garbled_weight_gradients_are_never_left_to_pytorch(case: Convolution, name: str, dtype: str) -> None:
    tensors = list(case.tensors(DTYPES[dtype]))
    gradient = gradient_like_output(case, tensors)
    ours = functions(case)[0]
    with aigc_fast.backend(name), torch.profiler.profile(record_shapes=True) as profile:
        every_gradient(ours, tensors, gradient, **case.arguments)
        if case.batch == 2:
            double_gradient(ours, tensors, gradient, **case.arguments)
        torch.func.vjp(lambda *leaves: ours(*leaves, **case.arguments), *tensors)[1](gradient)
    assert padded_weight_gradients(profile) == 0


@pytest.mark.parametrize("name", ["conv3d", "conv_transpose3d"])
def test_pytorchs_other_weight_gradients_are_its_own(name: str) -> None:
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((2, 8, 5, 5, 5), (8, 8, 3, 3, 3))]
    with torch.profiler.profile(record_shapes=True) as profile:
        getattr(TF, name)(*tensors, padding=1).sum().backward()
    assert padded_weight_gradients(profile) == 1


IMPOSSIBLE = {
    "weight channels": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(4, 2, 3, 3)), {}, "input|weight|channel"),
    "rank of weight": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3)), {}, "weight"),
    "rank of input": (lambda: (torch.randn(5, 5), torch.randn(3, 2, 3, 3)), {}, "input"),
    "size of bias": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3)), {}, "bias"),
    "stride zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"stride": 0}, "stride"),
    "stride below zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"stride": -1}, "stride"),
    "padding below zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"padding": -1}, "padding"),
    "dilation zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"dilation": 0}, "dilation"),
    "groups": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"groups": 2}, "groups"),
    "groups zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"groups": 0}, "groups"),
    "output padding": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)),
        {"output_padding": 3, "stride": 2},
        "output_padding",
    ),
    "empty output": (lambda: (torch.randn(2, 3, 1, 1), torch.randn(3, 2, 1, 1)), {"padding": 2}, "output|padding|size"),
    "length of stride": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)),
        {"stride": (1, 2, 3)},
        "stride",
    ),
    "dtypes": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3, dtype=torch.float64)),
        {},
        "weight|dtype|type",
    ),
    "device": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3, device="meta")),
        {},
        "weight|device",
    ),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_bad_arguments_name_the_argument(what: str, batch: int, backend: str) -> None:
    if (what, batch, backend) == ("device", 1, "auto"):
        pytest.skip("a small call is PyTorch's, which takes a weight on meta")
    make, kwargs, named = IMPOSSIBLE[what]
    input, *others = make()
    with pytest.raises((ValueError, RuntimeError, TypeError), match=f"(?i){named}"):
        AF.conv_transpose2d(input[:batch], *others, **kwargs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_types_without_a_kernel_do_as_pytorch_does(dtype: torch.dtype, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("a forced backend refuses with its own reasons")
    input, weight = torch.ones(1, 2, 4, 4).to(dtype), torch.ones(2, 3, 3, 3).to(dtype)
    try:
        expected = TF.conv_transpose2d(input, weight)
    except RuntimeError as error:
        with pytest.raises(type(error)):
            AF.conv_transpose2d(input, weight)
    else:
        torch.testing.assert_close(AF.conv_transpose2d(input, weight), expected)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_repeated_call_sees_new_values_dtypes_and_strides(name: str, backend: str) -> None:
    ours, theirs = getattr(AF, name), getattr(TF, name)
    torch.manual_seed(0)
    input, weight, bias = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 4, 4), torch.randn(32)[::2]
    for _ in range(3):
        weight.data.mul_(-2)
        bias.add_(1)
        for tensors in (
            (input, weight, bias),
            (input.to(memory_format=torch.channels_last), weight, bias),
            (input.transpose(2, 3), weight.flip(0), None),
            (input.bfloat16(), weight.bfloat16(), bias.bfloat16()),
            (input.double(), weight.double(), bias.double()) if backend != "cpu" else (input, weight, None),
        ):
            expected = theirs(*tensors, stride=2)
            found = ours(*tensors, stride=2)
            assert found.dtype == expected.dtype
            assert relative_error(found, expected) < (1e-2 if found.dtype == torch.bfloat16 else 1e-5)


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


def test_an_output_without_elements(backend: str) -> None:
    sizes = {"padding": 3, "dilation": (1, 2)}
    found = []
    for compute in (AF.conv_transpose2d, TF.conv_transpose2d):
        tensors = [torch.ones(shape, requires_grad=True) for shape in ((2, 7, 17, 2), (7, 31, 2, 3), (31,))]
        if backend == "cpu" and compute is AF.conv_transpose2d:
            with pytest.raises(BackendError, match="no elements"):
                compute(*tensors, **sizes)
            return
        output = compute(*tensors, **sizes)
        found.append([output, *torch.autograd.grad(output.sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [np.int64(2), torch.tensor(2)])
def test_integers_of_other_types(stride: Any) -> None:
    input, weight = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 4, 4)
    torch.testing.assert_close(
        AF.conv_transpose2d(input, weight, None, stride),
        TF.conv_transpose2d(input, weight, None, 2),
        rtol=1e-4,
        atol=1e-4,
    )


class Subclass(int):
    """An integer of another type."""


OF_OTHER_TYPES = {
    "float": 2.0,
    "bool": True,
    "string": "2",
    "none": None,
    "fraction": Fraction(2),
    "complex": 2 + 0j,
    "subclass": Subclass(2),
    "NumPy's integer": np.int64(2),
    "NumPy's float": np.float64(2),
    "NumPy's bool": np.bool_(True),
    "NumPy's array": np.array([2, 2]),
    "tensor": torch.tensor(2),
    "tensor of float": torch.tensor(2.0),
    "tensor of one": torch.tensor([2]),
    "tensor of two": torch.tensor([2, 2]),
    "list": [2, 2],
    "size": torch.Size([2, 2]),
    "one in a list": [2],
    "three": (2, 2, 2),
    "floats": (2.0, 2.0),
    "a float": (2, 2.0),
    "bools": (True, True),
    "a bool": (2, True),
    "NumPy's integers": [np.int64(2), np.int64(2)],
    "tensors": [torch.tensor(2), torch.tensor(2)],
    "range": range(1, 3),
    "set": {2},
    "nested": ((2, 2),),
}


@pytest.mark.parametrize(
    "shapes", [((1, 4, 9, 9), (4, 4, 3, 3)), ((2, 16, 9, 9), (16, 16, 4, 4))], ids=["small", "large"]
)
@pytest.mark.parametrize("argument", ["stride", "padding", "dilation", "groups", "output_padding"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_integers_are_what_pytorch_takes_for_them(
    name: str, argument: str, shapes: tuple[tuple[int, ...], ...], backend: str
) -> None:
    if (name, argument) == ("conv2d", "output_padding"):
        pytest.skip("conv2d has none")
    ours, theirs = getattr(AF, name), getattr(TF, name)
    tensors = [torch.randn(shape) for shape in shapes]
    others = {"stride": 3} if argument == "output_padding" else {}
    # What is remembered of them must not answer for what is equal to them.
    integers = [value for value in (1, 2, (1, 1), (2, 2)) if argument != "groups" or value == 1]
    for given in [*OF_OTHER_TYPES.values(), *integers, *integers, *OF_OTHER_TYPES.values()]:
        arguments = {argument: given, **others}
        try:
            expected = theirs(*tensors, **arguments)
        except (TypeError, RuntimeError) as error:
            with pytest.raises(type(error)):
                ours(*tensors, **arguments)
        else:
            torch.testing.assert_close(ours(*tensors, **arguments), expected, rtol=1e-4, atol=1e-4)


def test_a_module_with_sizes_of_another_type_fails_as_pytorchs_after_one_with_integers() -> None:
    input = torch.randn(2, 16, 9, 9)
    for _ in range(2):
        aigc_fast.nn.FusedSequential(aigc_fast.nn.Conv2d(16, 16, 3, stride=2), torch.nn.ReLU())(input)
    for stride in (2.0, True):
        with pytest.raises(TypeError):
            torch.nn.Conv2d(16, 16, 3, stride=stride)(input)
        with pytest.raises(TypeError):
            aigc_fast.nn.Conv2d(16, 16, 3, stride=stride)(input)
    with pytest.raises(TypeError):
        aigc_fast.nn.FusedSequential(aigc_fast.nn.Conv2d(16, 16, 3, stride=2.0), torch.nn.ReLU())(input)


@pytest.mark.parametrize("arguments", [native.arguments, native._arguments], ids=["native", "python"])
def test_arguments_are_remembered_with_their_types(arguments: Callable[..., Any]) -> None:
    distinct = [0, 1, 2, True, 1.0, 2.0, "2", "", None, (2,), (2, 2), (2, True), np.int64(2), -1, 2**62]
    assert len({arguments(value) for value in distinct}) == len(distinct)
    assert len({arguments(1, (2, 3)), arguments(1, 2, 3), arguments((1, 2), 3), arguments((1, 2, 3))}) == 4
    assert arguments((2, 2), "same", None) == arguments((2, 2), "".join(["sa", "me"]), None)
    for value in ((2.0,), {2}, range(2), Fraction(2), np.float64(2), np.bool_(True), ((2,),)):
        with pytest.raises(TypeError):
            arguments(value)


TOO_SMALL = [
    (dims, batch, padding, axis) for dims in (1, 2, 3) for batch in (1, 2) for padding in (1, 2) for axis in (0, -1)
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("dims", "batch", "padding", "axis"), TOO_SMALL)
def test_outputs_without_size_are_pytorchs_or_refused_as_it_does(
    dims: int, batch: int, padding: int, axis: int, dtype: torch.dtype, device: str
) -> None:
    size, paddings = [6] * dims, [0] * dims
    size[axis], paddings[axis] = padding + 1, padding
    ours, theirs = (getattr(module, f"conv_transpose{dims}d") for module in (AF, TF))
    for bias, requires_grad in ((None, False), (torch.ones(16), True)):
        tensors = [torch.ones(batch, 8, *size), torch.ones(8, 16, *[1] * dims), bias]
        tensors = [tensor if tensor is None else tensor.to(device, dtype) for tensor in tensors]
        tensors[1].requires_grad_(requires_grad)
        for given in (tensors, [tensors[0][0], *tensors[1:]]):
            try:
                expected = theirs(*given, padding=paddings)
            except RuntimeError:
                with pytest.raises(RuntimeError, match=r"small|size|shape"):
                    ours(*given, padding=paddings)
            else:
                found = ours(*given, padding=paddings)
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["conv_transpose1d", "conv_transpose2d"])
def test_outputs_without_size_in_a_compiled_graph(name: str, batch: int) -> None:
    dims = int(name[-2])
    for padding in (1, 2):
        tensors = torch.ones(batch, 8, *[padding + 1] * dims), torch.ones(8, 16, *[1] * dims)
        shapes = []
        for module in (AF, TF):
            function = getattr(module, name)
            compiled = torch.compile(lambda x, w, f=function, p=padding: f(x, w, padding=p), backend="aot_eager")
            try:
                shapes.append(compiled(*tensors).shape)
            except Exception:
                shapes.append(None)
        assert shapes[0] == shapes[1]


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


def test_more_than_two_billion_elements_are_not_miscounted() -> None:
    """Nothing is allocated: shapes alone, on the meta device, in the op's own arithmetic."""
    input, weight = torch.empty(2, 1, 2**16, 2**15, device="meta"), torch.empty(1, 1, 2, 2, device="meta")
    assert AF.conv_transpose2d(input, weight, stride=2).shape == TF.conv_transpose2d(input, weight, stride=2).shape


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


class TestModules:
    """nn.ConvTranspose1d/2d/3d and nn.Conv1d/2d/3d."""

    NAMES = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1d", "Conv2d", "Conv3d")

    @staticmethod
    def pair(name: str, **kwargs: Any) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
        ours = getattr(aigc_fast.nn, name)(6, 4, 3, stride=2, padding=1, **kwargs)
        theirs = getattr(torch.nn, name)(6, 4, 3, stride=2, padding=1, **kwargs)
        return ours, theirs, torch.randn(2, 6, *[5] * int(name[-2]))

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"groups": 2}, {"dilation": 2}], ids=str)
    def test_state_dict_goes_both_ways(self, name: str, kwargs: dict[str, Any]) -> None:
        ours, theirs, input = self.pair(name, **kwargs)
        assert isinstance(ours, getattr(torch.nn, name))
        assert repr(ours) == repr(theirs)
        ours.load_state_dict(theirs.state_dict())
        expected = theirs.double()(input.double())
        assert_parity(ours(input), theirs.float()(input), expected)
        theirs.load_state_dict(ours.state_dict())

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
    def test_padding_modes(self, mode: str) -> None:
        ours, theirs, input = self.pair("Conv2d", padding_mode=mode)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(input), theirs(input))

    def test_output_size(self) -> None:
        ours, theirs, input = self.pair("ConvTranspose2d")
        ours.load_state_dict(theirs.state_dict())
        for size in ([9, 10], [10, 9]):
            torch.testing.assert_close(ours(input, output_size=size), theirs(input, output_size=size))
        with pytest.raises(ValueError, match=r"output_size|output size"):
            ours(input, output_size=[30, 30])


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


@pytest.mark.parametrize(
    ("level", "batch", "dtype", "layout", "left"),
    [
        ("avx512_bf16", 16, torch.bfloat16, torch.channels_last, True),
        ("avx512_bf16", 16, torch.bfloat16, torch.contiguous_format, False),
        ("avx512_bf16", 1, torch.bfloat16, torch.channels_last, False),
        ("avx512_bf16", 16, torch.float32, torch.channels_last, False),
        ("avx2", 16, torch.bfloat16, torch.channels_last, False),
        ("amx", 16, torch.bfloat16, torch.channels_last, False),
    ],
)
def test_large_bfloat16_convolutions_in_channels_last_are_pytorchs_where_it_multiplies_them_without_tiles(
    level: str,
    batch: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native.cpu, "level", level)
    input = torch.empty(batch, 256, 8, 8, dtype=dtype, device="meta", memory_format=layout)
    weight = torch.empty(256, 128, 4, 4, dtype=dtype, device="meta")
    plan = make_plan(tuple(input.shape), tuple(weight.shape), None, (2, 2), (1, 1), (0, 0), (1, 1), 1, True)
    assert (choice.forward_slower(input, weight, plan, winograd=False) is not None) == left


@pytest.mark.parametrize(
    ("input", "weight", "groups", "transposed", "light", "light_with_gradients"),
    [
        ((1, 4, 4, 4), (4, 4, 3, 3), 1, False, True, True),
        ((1, 4, 4, 4), (4, 4, 3, 3), 1, True, True, True),
        ((1, 16, 16, 16), (16, 16, 3, 3), 1, False, False, True),
        ((1, 16, 16, 16), (16, 16, 3, 3), 1, True, False, False),
        ((1, 64, 16, 16), (64, 64, 3, 3), 1, False, False, False),
        ((2, 4, 4, 4), (4, 4, 3, 3), 1, False, False, False),
        ((1, 4, 6, 6), (4, 4, 4, 4), 1, False, False, False),
        ((1, 4, 6, 6), (4, 4, 4, 3), 1, True, True, True),
        ((1, 4, 9), (4, 4, 5), 1, False, True, True),
        ((1, 4, 4, 4), (4, 1, 3, 3), 4, False, False, False),
        ((1, 0, 4, 4), (0, 4, 3, 3), 1, True, True, True),
    ],
)
def test_small_calls_are_pytorchs(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    groups: int,
    transposed: bool,
    light: bool,
    light_with_gradients: bool,
) -> None:
    tensors = torch.empty(input), torch.empty(weight)
    assert choice.is_light(*tensors, groups, transposed) == light
    assert choice.is_light(tensors[0], tensors[1].requires_grad_(), groups, transposed) == light_with_gradients
    with torch.no_grad():
        assert choice.is_light(*tensors, groups, transposed) == light


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_small_call_is_explained_and_can_be_forced(name: str) -> None:
    tensors = torch.randn(1, 4, 4, 4), torch.randn(4, 4, 3, 3)
    assert "small" in aigc_fast.explain(name, *tensors).reasons["cpu"]
    with aigc_fast.backend("triton"), pytest.raises(BackendError):
        getattr(AF, name)(*tensors)


class TestRemembered:
    """The second plain call of a kind goes straight to what ran the first."""

    @pytest.mark.parametrize("channels", [4, 24], ids=["packed for the call", "packed once"])
    @pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
    def test_sees_what_changed_since(self, name: str, channels: int) -> None:
        ours, theirs = getattr(AF, name), getattr(TF, name)
        x, weight, bias = torch.randn(2, channels, 9, 9), torch.randn(channels, channels, 4, 4), torch.randn(channels)

        def check(*args: Any) -> None:
            torch.testing.assert_close(ours(*args), theirs(*args), rtol=1e-4, atol=1e-3, equal_nan=True)

        for stride in (2, (2, 1), [1, 2]):
            for _ in range(3):
                check(x, weight, bias, stride, 1)
                check(x, weight, None, stride, 1)
                check(x[0], weight, bias, stride, 1)
                check(x.to(memory_format=torch.channels_last), weight, bias, stride, 1)
                weight.mul_(0.9)
                bias.add_(1.0)
        weight[0, 0, 1, 2] = math.inf
        check(x, weight, bias, 2, 1)
        x[0, 0, 3, 3] = math.nan
        check(x, weight, bias, 2, 1)

    def test_other_calls_are_looked_at(self) -> None:
        x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 4, 4, 4)
        for _ in range(2):
            AF.conv_transpose2d(x, weight, None, 2)
        with pytest.raises(RuntimeError, match="input has shape"):
            AF.conv_transpose1d(x, weight, None, 2)
        assert AF.conv_transpose2d(x, weight.requires_grad_(), None, 2).requires_grad
        weight.requires_grad_(False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert AF.conv_transpose2d(x, weight, None, 2).dtype == torch.bfloat16
        with pytest.raises(BackendError), aigc_fast.backend("cuda"):
            AF.conv_transpose2d(x, weight, None, 2)

    @needs_native
    def test_signatures_tell_tensors_apart(self) -> None:
        x = torch.randn(2, 3, 4)
        others = [x.transpose(0, 1), x.double(), x[:1], x[..., ::2], x.to("meta"), x.unsqueeze(0), x.view(torch.int32)]
        found = [native.signature(tensor) for tensor in (x, *others)]
        assert len(set(found)) == len(found)
        assert native.signature(x, None) != native.signature(None, x) != native.signature(x)
        assert native.signature(torch.randn(2, 3, 4)) == found[0]


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
