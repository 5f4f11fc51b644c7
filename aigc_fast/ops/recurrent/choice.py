"""Where PyTorch's own call is all there is, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.ops.recurrent.sizes import GATES, LSTM, Options
from aigc_fast.runtime import native
from aigc_fast.runtime.autocast import any_autocast
from aigc_fast.runtime.backends import is_automatic
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.operator import is_compiling, plain_eager


def _shapes_of_params(params: Sequence[Tensor], options: Options, hidden: int, size: int, depth: int) -> bool:
    gates, per_bias = GATES[options.mode] * hidden, 2 * options.has_biases
    each = 2 + per_bias + (size != hidden)
    if len(params) != options.parts * each:
        return False
    for part in range(options.parts):
        first, second, *rest = params[part * each : (part + 1) * each]
        of_layer = depth if part < options.directions else options.directions * size
        if first.shape != (gates, of_layer) or second.shape != (gates, size):
            return False
        if any(bias.shape != (gates,) for bias in rest[:per_bias]):
            return False
        if size != hidden and rest[per_bias].shape != (size, hidden):
            return False
    return True


def fits(
    input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor], options: Options
) -> bool:
    """Whether the op takes these arguments; PyTorch's call names what does not fit."""
    tensors = input, *states, *params
    if not all(isinstance(tensor, Tensor) for tensor in tensors) or len(states) != 1 + (options.mode == LSTM):
        return False
    if any(tensor.dtype != input.dtype or tensor.device != input.device for tensor in tensors):
        return False
    if not input.is_floating_point() or any(state.dim() != 3 for state in states):
        return False
    if batch_sizes is None:
        if input.dim() != 3:
            return False
        steps, batch = input.shape[:2] if not options.batch_first else (input.shape[1], input.shape[0])
    else:
        if input.dim() != 2 or batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
            return False
        steps, batch = batch_sizes.shape[0], states[0].shape[1]
    size, hidden = states[0].shape[2], states[-1].shape[2]
    if steps == 0 or size > hidden or size == 0:
        return False
    if any(state.shape[:2] != (options.parts, batch) for state in states):
        return False
    return _shapes_of_params(params, options, hidden, size, input.shape[-1])


def leave(input: Tensor, dropout: float) -> Reason:
    """Why a call that fits is PyTorch's own, or None."""
    if is_compiling() or not (plain_eager() and is_automatic()):
        return None
    if any_autocast():
        return "autocast: PyTorch's own call obeys it"
    if not input.is_cpu:
        return f"the tensors are on {input.device}: PyTorch's own kernels compute there"
    if input.dtype != torch.float32:
        return f"{input.dtype}: PyTorch's own kernel computes in it"
    if dropout:
        return "dropout between layers, which the kernels do not make"
    return native.cpu_reason()
