"""Derivatives of convolutions: one alone, the second, and where PyTorch's own are garbage."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as TF
from convolution_cases import FEW_CONVOLUTIONS, PLAIN, TRANSPOSED, Convolution
from convolution_checks import (
    assert_all_parity,
    channels_last,
    double_gradient,
    doubled,
    every_gradient,
    functions,
    gradient_like_output,
    needs_native,
)
from parity import DTYPES, assert_parity

import aigc_fast


@pytest.mark.parametrize("case", [*FEW_CONVOLUTIONS, TRANSPOSED[10], PLAIN[10]], ids=str)
def test_double_backward(case: Convolution, backend: str) -> None:
    tensors = list(case.tensors())
    assert_all_parity(double_gradient, case, tensors, gradient_like_output(case, tensors))


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


@pytest.mark.parametrize("transposed", [True, False])
def test_gradcheck_of_the_reference(transposed: bool) -> None:
    case = Convolution(2, 4, 6, (3, 4), 3, 2, 1, 1 if transposed else 0, 1, 2, transposed)
    tensors = [tensor.requires_grad_() for tensor in case.tensors(torch.float64)]
    function = functions(case)[0]
    with aigc_fast.backend("reference"):
        assert torch.autograd.gradcheck(lambda *t: function(*t, **case.arguments), tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *t: function(*t, **case.arguments), tensors, fast_mode=True)


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
