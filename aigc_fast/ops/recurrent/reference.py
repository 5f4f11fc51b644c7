"""The formulas in plain PyTorch, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.recurrent.sizes import GRU, LAYER_NORM_LSTM, LSTM, RNN_TANH, Options, kept_size, params_of, sizes_of
from aigc_fast.runtime.arguments import numbers_of
from aigc_fast.runtime.derivatives import own_variable, recording


def _normalized_step(x: Tensor, states: tuple[Tensor, ...], params: Sequence[Tensor], eps: float) -> Any:
    """The states after a step of a normalized LSTM; `x` is the input's product already, normalized."""
    hidden, cell = states
    _, of_hidden, _, bias, _, gain, *of_cells = params
    sums = x + TF.layer_norm(TF.linear(hidden, of_hidden), gain.shape, gain, bias, eps)
    i, f, g, o = sums.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * TF.layer_norm(cell, cell.shape[-1:], *of_cells, eps).tanh(), cell


def product(x: Tensor, params: Sequence[Tensor], options: Options) -> Tensor:
    """The product of the input of any steps with its bias, or normalized."""
    if options.mode != LAYER_NORM_LSTM:
        return TF.linear(x, params[0], params[2] if options.has_biases else None)
    return TF.layer_norm(TF.linear(x, params[0]), params[2].shape, params[4], params[2], options.eps)


def _step(x: Tensor, states: tuple[Tensor, ...], params: Sequence[Tensor], options: Options) -> Any:
    """The states after a step; `x` is the input's `product` already."""
    mode, has_biases, hidden = options.mode, options.has_biases, states[0]
    if mode == LAYER_NORM_LSTM:
        return _normalized_step(x, states, params, options.eps)
    h = TF.linear(hidden, params[1], params[3] if has_biases else None)
    if mode == LSTM:
        i, f, g, o = (x + h).chunk(4, -1)
        cell = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        shown = o.sigmoid() * cell.tanh()
        is_projected = len(params) > (4 if has_biases else 2)
        return TF.linear(shown, params[-1]) if is_projected else shown, cell
    if mode == GRU:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
        update, fresh = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return ((hidden - fresh) * update + fresh,)
    return ((x + h).tanh() if mode == RNN_TANH else (x + h).relu(),)


def _direction(
    steps: Sequence[Tensor], states: Sequence[Tensor], params: Sequence[Tensor], options: Options, reversed_: bool
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The hidden states of all steps, in the steps' order, and the last states of each sequence."""
    found: list[Tensor] = []
    now, ended = tuple(state[: steps[-1 if reversed_ else 0].shape[0]] for state in states), []
    for x in reversed(steps) if reversed_ else steps:
        count, going_on = x.shape[0], now[0].shape[0]
        if count < going_on:
            ended.append(tuple(state[count:] for state in now))
            now = tuple(state[:count] for state in now)
        elif count > going_on:
            now = tuple(torch.cat([state, first[going_on:count]]) for state, first in zip(now, states, strict=True))
        now = _step(product(x, params, options), now, params, options)
        found.append(now[0])
    last = tuple(torch.cat(parts) for parts in zip(now, *reversed(ended), strict=True)) if ended else now
    return found[::-1] if reversed_ else found, last


def recurrent(
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output, the last hidden states, an LSTM's last cells, and zeros for what backward would read."""
    *rest, keep = numbers
    options = Options(*rest)
    sizes = sizes_of(input, batch_sizes, states, options)
    if batch_sizes is not None:
        steps = list(input.split(numbers_of(batch_sizes)))
    else:
        steps = list(input.unbind(1 if options.batch_first else 0))
    last = []
    for layer in range(options.layers):
        found = []
        for direction in range(options.directions):
            part = layer * options.directions + direction
            own_states = [state[part] for state in states]
            own_params = params_of(params, options)[part]
            outputs, ended = _direction(steps, own_states, own_params, options, direction == 1)
            found.append(outputs)
            last.append(ended)
        steps = [torch.cat(each, -1) for each in zip(*found, strict=True)] if len(found) > 1 else found[0]
    output = torch.cat(steps) if batch_sizes is not None else torch.stack(steps, 1 if options.batch_first else 0)
    hidden, *cells = (torch.stack(each) for each in zip(*last, strict=True))
    kept = input.new_zeros(kept_size(sizes, options) if keep else 0, dtype=torch.float32)
    return output, hidden, cells[0] if cells else input.new_empty(0), kept


def recurrent_backward(
    grads: Sequence[Tensor],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    output: Tensor,
    kept: Tensor,
    *numbers: Any,
) -> tuple[Tensor, ...]:
    """The gradients to the input, empty unless `to_input`, the states and the parameters; differentiable."""
    *rest, to_input = numbers
    keep_graph = torch.is_grad_enabled()
    with recording():
        inputs = [own_variable(tensor, keep_graph) for tensor in (input, *states, *params)]
        x, *others = inputs
        found = recurrent(x, batch_sizes, others[: len(states)], others[len(states) :], *rest, False)
        first, *rest = torch.autograd.grad(found[: len(grads)], inputs, grads, create_graph=keep_graph)
        return first if to_input else x.new_empty(0), *rest
