"""A convolutional LSTM over whole sequences: derivatives of any order, layouts, and what it keeps."""

from __future__ import annotations

import torch
from convolution_checks import needs_native
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from watching import launches

import aigc_fast
from aigc_fast.ops.recurrent.maps import CONV_LSTM, conv_lstm

SHAPES = (3, 2, 8, 4, 5), (8, 2, 3, 3), (2, 2, 4, 5), (2, 2, 4, 5)


def tensors_of(dtype: torch.dtype = torch.float32, gradients: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_(gradients) for shape in SHAPES]


def test_derivatives_are_right() -> None:
    inputs = tensors_of(torch.float64)
    assert gradcheck(conv_lstm, inputs)
    assert gradgradcheck(conv_lstm, inputs)


def test_the_kernels_gradients_can_be_differentiated(backend: str) -> None:
    """In float32, against the reference's."""

    def second() -> tuple[Tensor, ...]:
        inputs = tensors_of()
        outputs, last = conv_lstm(*inputs)
        first = torch.autograd.grad(outputs.sin().sum() + last.cos().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)

    found = second()
    with aigc_fast.backend("reference"):
        expected = second()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_registered_op_is_whole() -> None:
    for keep in (False, True):
        opcheck(torch.ops.aigc_fast.conv_lstm.default, (*tensors_of(gradients=False), keep))
    outputs, last, kept = CONV_LSTM(*tensors_of(gradients=False), True)
    ones = torch.ones_like(outputs), torch.ones_like(last)
    opcheck(torch.ops.aigc_fast.conv_lstm_backward.default, (*ones, *tensors_of(gradients=False), outputs, kept))


def test_tensors_may_lie_otherwise() -> None:
    sums, weight, hidden, cell = tensors_of(gradients=False)
    turned = [each.to(memory_format=torch.channels_last) for each in (weight, hidden, cell)]
    strided = sums.transpose(-1, -2).contiguous().transpose(-1, -2), *turned
    for inputs in (strided, (torch.cat([sums, sums], 2)[:, :, :8], weight, hidden, cell)):
        given = [each.detach().requires_grad_() for each in inputs]
        found = conv_lstm(*given)
        others = tensors_of()
        expected = conv_lstm(*others)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected[0]).transpose(-1, -2).contiguous().transpose(-1, -2)
        gradients = [torch.autograd.grad(*pair, upstream) for pair in ((found[0], given), (expected[0], others))]
        torch.testing.assert_close(*gradients)


def test_what_wants_no_gradients_keeps_nothing() -> None:
    assert CONV_LSTM(*tensors_of(gradients=False), False)[2].numel() == 0
    with torch.no_grad():
        outputs, last = conv_lstm(*tensors_of())
    assert not outputs.requires_grad
    torch.testing.assert_close((outputs, last), conv_lstm(*tensors_of()))


@needs_native
def test_steps_and_their_gradients_are_native() -> None:
    with launches() as called:
        outputs, _ = conv_lstm(*tensors_of())
        outputs.sum().backward()
    assert (called.count("lstm_maps"), called.count("lstm_maps_backward")) == (3, 3)
