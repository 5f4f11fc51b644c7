"""A convolutional LSTM over whole sequences, and its gradients: an op over convolutions and the steps between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.conv_transpose.operators import conv, conv_transpose, conv_weight_gradient
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.derivatives import own_variable, recording
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.memory import placed
from aigc_fast.runtime.operator import Operator

__all__ = ["CONV_LSTM", "CONV_LSTM_BACKWARD", "conv_lstm", "step_by_step"]

_GATES = 4
_ONES, _NONE = (1, 1), (0, 0)


def conv_lstm(sums: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """What a convolutional LSTM makes of a sequence, all steps in one call.

    Args:
        sums: (T, N, 4 * maps, height, width), what convolutions make of the inputs, with their bias: of the input,
            forget and output gates and of the new cell.
        weight: (4 * maps, maps, rows, columns), both odd, of the hidden state's convolution, which keeps its sides.
        hidden, cell: (N, maps, height, width), the state before.

    Returns:
        The hidden states of all steps, (T, N, maps, height, width), and the last cell.
    """
    tensors = sums, weight, hidden, cell
    outputs, last, _ = CONV_LSTM(*tensors, torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
    return outputs, last


def step_by_step(
    sums: Tensor, convolution: Callable[[Tensor], Tensor], hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """`conv_lstm` in plain PyTorch, with a function for the hidden state's convolution."""
    outputs = []
    for of_input in sums:
        gates = of_input + convolution(hidden)
        enter, keep, leave = gates[:, : 3 * cell.shape[1]].sigmoid().chunk(3, dim=1)
        cell = keep * cell + enter * gates[:, 3 * cell.shape[1] :].tanh()
        hidden = leave * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs), cell


def _kept_shape(sums: Tensor, hidden: Tensor) -> tuple[int, ...]:
    """Of each step the activated gates, then the cell."""
    steps, images, _, *sides = sums.shape
    return steps, images, (_GATES + 1) * hidden.shape[1], *sides


def _empty(sums: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, keep: bool) -> tuple[Tensor, ...]:
    outputs = sums.new_empty(len(sums), *hidden.shape)
    return outputs, cell.new_empty(cell.shape), sums.new_empty(_kept_shape(sums, hidden) if keep else 0)


def _reference(sums: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, keep: bool) -> tuple[Tensor, ...]:
    outputs, last = step_by_step(sums, lambda x: TF.conv2d(x, weight, padding=_padding(weight)), hidden, cell)
    return outputs, last, sums.new_zeros(_kept_shape(sums, hidden) if keep else 0)


def _padding(weight: Tensor) -> tuple[int, ...]:
    return tuple(side // 2 for side in weight.shape[2:])


def _setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    outputs, _, kept = output
    ctx.mark_non_differentiable(kept)
    # Filling what is kept with zeros would take as long as a step.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4], outputs, kept)


def _backward(ctx: Any, to_outputs: Tensor | None, to_last: Tensor | None, _: Any) -> tuple[Any, ...]:
    *_, cell, outputs, _ = saved = ctx.saved_tensors
    to_outputs = torch.zeros_like(outputs) if to_outputs is None else to_outputs
    to_last = torch.zeros_like(cell) if to_last is None else to_last
    return *CONV_LSTM_BACKWARD(to_outputs, to_last, *saved), None


def _empty_gradients(to_outputs: Tensor, to_last: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors[:4])


def _reference_gradients(to_outputs: Tensor, to_last: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Those to the sums, the weight, and the state before; differentiable."""
    keep_graph = torch.is_grad_enabled()
    with recording():
        inputs = [own_variable(tensor, keep_graph) for tensor in tensors[:4]]
        found = _reference(*inputs, False)[:2]
        return torch.autograd.grad(found, inputs, (to_outputs, to_last), create_graph=keep_graph)


def _setup_backward(ctx: Any, inputs: Sequence[Tensor], output: Sequence[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])


def _double_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    saved, keep_graph = ctx.saved_tensors, torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [own_variable(tensor, keep_graph) for tensor in saved]
        first = _reference_gradients(*inputs)
        found = torch.autograd.grad(first, inputs, upstream, create_graph=keep_graph, allow_unused=True)
    return *found, None, None


_TENSORS = "Tensor sums, Tensor weight, Tensor hidden, Tensor cell"

CONV_LSTM = Operator(
    "conv_lstm",
    f"({_TENSORS}, bool keep) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    allocate=_empty,
    setup_context=_setup,
    backward=_backward,
)
CONV_LSTM_BACKWARD = Operator(
    "conv_lstm_backward",
    f"(Tensor to_outputs, Tensor to_last, {_TENSORS}, Tensor outputs, Tensor kept) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_gradients,
    allocate=_empty_gradients,
    setup_context=_setup_backward,
    backward=_double_backward,
)


def _unsupported(sums: Tensor, *others: Any) -> Reason:
    """Why the kernels cannot take these arguments, or None."""
    tensors = [tensor for tensor in others if isinstance(tensor, Tensor)]
    different = next((tensor for tensor in tensors if (tensor.dtype, tensor.device) != (sums.dtype, sums.device)), None)
    if different is not None:
        return f"{different.dtype} on {different.device} beside {sums.dtype} on {sums.device}"
    if sums.numel() == 0:
        return "there is nothing to compute"
    return devices.cpu(sums, sums.dtype, (torch.float32,))


def _backward_unsupported(to_outputs: Tensor, to_last: Tensor, sums: Tensor, *others: Tensor) -> Reason:
    return "nothing was kept" if others[-1].numel() == 0 else _unsupported(sums, to_outputs, to_last, *others)


def _by_images(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, each image of which lies without gaps."""
    image = tensor[(0,) * (tensor.dim() - 3)]
    return tensor if image.is_contiguous() else tensor.contiguous()


def _fill(results: Sequence[Tensor], sums: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, keep: bool) -> bool:
    outputs, last, kept = results
    sums, cell, step = _by_images(sums), _by_images(cell), native.kernels().lstm_maps
    of_cell = slice(_GATES * hidden.shape[1], None)
    for now, of_input in enumerate(sums):
        products = _by_images(conv(hidden, weight, None, _ONES, _padding(weight), _ONES, 1))
        next_cell = kept[now][:, of_cell] if keep else last
        step(outputs[now], next_cell, kept[now] if keep else None, of_input, products, cell)
        hidden, cell = outputs[now], next_cell
    if keep:
        last.copy_(cell)
    return True


def _fill_gradients(
    results: Sequence[Tensor],
    to_outputs: Tensor,
    to_last: Tensor,
    sums: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    outputs: Tensor,
    kept: Tensor,
) -> bool:
    to_sums, to_weight, to_hidden, to_cell = results
    to_outputs, cell, step = _by_images(to_outputs), _by_images(cell), native.kernels().lstm_maps_backward
    cells = [cell, *kept[:, :, _GATES * hidden.shape[1] :]]
    to_cell.copy_(to_last)
    padding, by_next = _padding(weight), None
    for now in reversed(range(len(sums))):
        step(to_sums[now], to_cell, to_outputs[now], by_next, kept[now], cells[now + 1], cells[now])
        by_next = _by_images(conv_transpose(to_sums[now], weight, None, _ONES, padding, _NONE, _ONES, 1))
    to_hidden.copy_(by_next)
    before = placed(torch.empty_like(outputs))
    torch.cat([hidden[None], outputs[:-1]], out=before)
    maps = before.flatten(0, 1), to_sums.flatten(0, 1)
    to_weight.copy_(conv_weight_gradient(*maps, weight.shape[2:], _ONES, padding, _ONES, 1))
    return True


CONV_LSTM.register("cpu", _fill, _unsupported)
CONV_LSTM_BACKWARD.register("cpu", _fill_gradients, _backward_unsupported)
