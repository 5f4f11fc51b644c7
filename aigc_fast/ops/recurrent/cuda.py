"""The native kernels of csrc/cuda/recurrent.cu: of few sequences all steps of a direction of a layer in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.recurrent.gradients import fill_normalized, fill_params
from aigc_fast.ops.recurrent.limits import MOST_SHARED
from aigc_fast.ops.recurrent.reference import product
from aigc_fast.ops.recurrent.sizes import (
    LAYER_NORM_LSTM,
    Options,
    Sizes,
    by_steps,
    counts_of,
    kept_of,
    params_of,
    sizes_of,
)
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32

MOST_BATCH = 8
_UNITS_OF_TILE, _COLUMNS_AT_ONCE = 8, 4
_WITHOUT_AUTOCAST = partial(torch.autocast, enabled=False)


def unsupported(
    input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor], *numbers: Any
) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    elsewhere = devices.cuda(input.dtype, input, *states, *params)
    if elsewhere is not None:
        return elsewhere
    if input.dtype not in UP_TO_FLOAT32:
        return f"{input.dtype} is computed by the reference"
    options = Options(*numbers[:-1])
    sizes = sizes_of(input, batch_sizes, states, options)
    if sizes.batch > MOST_BATCH:
        return f"{sizes.batch} sequences: the kernel takes up to {MOST_BATCH}"
    if sizes.projected:
        return "hidden states are projected: the kernel has no projections"
    return None


def detail(*args: object) -> str:
    """What the kernel does."""
    return "few sequences: all steps of each direction of each layer in one launch"


class _Call(NamedTuple):
    """What a call's launches have in common.

    Attributes:
        lengths: the steps of each sequence, then zeros.
        like: a tensor of the call's device and dtype.
    """

    options: Options
    sizes: Sizes
    lengths: tuple[int, ...]
    like: Tensor

    def numbers(self, stride: int, reversed_: bool, first: Tensor, second: Tensor) -> list[int]:
        """As the kernels take them; `first`, `second`: whose rows they are told."""
        options, sizes = self.options, self.sizes
        told = options.mode, DTYPES[self.like.dtype], sizes.steps, sizes.batch, sizes.hidden, stride, int(reversed_)
        return [*told, MOST_SHARED, *_rows(first, options), *_rows(second, options), *self.lengths]

    def memory(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.like.device)

    def of_tiles(self) -> Tensor:
        """What blocks tell each other of the tiles of each row, of a normalized LSTM: two pairs."""
        return self.memory(2, self._tiles, MOST_BATCH, 2)

    def words(self) -> Tensor:
        """By which the blocks of a launch tell each other how far they are."""
        return torch.zeros(self._tiles, dtype=torch.int32, device=self.like.device)

    @property
    def _tiles(self) -> int:
        return -(-self.sizes.hidden // _UNITS_OF_TILE)


def _call_of(input: Tensor, batch_sizes: Tensor | None, options: Options, sizes: Sizes) -> _Call:
    counts = counts_of(batch_sizes, sizes)
    lengths = [sum(count > b for count in counts) if counts else sizes.steps for b in range(sizes.batch)]
    return _Call(options, sizes, (*lengths, *[0] * (MOST_BATCH - sizes.batch)), input)


def _rows(tensor: Tensor, options: Options) -> tuple[int, int]:
    """Elements between the rows of neighbouring steps, 0 of rows in the order of the steps, and of the batch."""
    if tensor.dim() == 2:
        return 0, tensor.stride(0)
    first, second, _ = tensor.stride()
    return (second, first) if options.batch_first else (first, second)


def _aligned(weight: Tensor) -> Tensor:
    """With zeros behind each row, so that all begin where the kernels' accesses may."""
    missing = -weight.shape[1] % _COLUMNS_AT_ONCE
    weight = TF.pad(weight, (0, missing)) if missing else weight.contiguous()
    return weight.clone() if weight.data_ptr() % (_COLUMNS_AT_ONCE * weight.itemsize) else weight


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _two(tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The hidden states and the cells, or None for those."""
    return (*tensors, None)[:2]


def _of_normalization(params: Sequence[Tensor], options: Options) -> Sequence[Tensor | None]:
    """The gain of the hidden states' products, and gain and bias of the cells, as a kernel takes them."""
    return [param.contiguous() for param in params[5:]] if options.mode == LAYER_NORM_LSTM else [None] * 3


def recurrent(
    results: Sequence[Tensor],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    *numbers: Any,
) -> bool:
    """Fills the output, the last states, and what backward reads."""
    *rest, keep = numbers
    options = Options(*rest)
    sizes = sizes_of(input, batch_sizes, states, options)
    call = _call_of(input, batch_sizes, options, sizes)
    output, *last, kept = results
    if not sizes.batch:
        return True
    states = [state.contiguous() for state in states]
    parts = kept_of(kept, sizes, options) if keep else None
    of_parts = params_of(params, options)
    with _WITHOUT_AUTOCAST(input.device.type):
        for layer in range(options.layers):
            is_top = layer == options.layers - 1
            width = options.directions * sizes.size
            found = output if is_top else call.memory(sizes.rows, width, dtype=input.dtype)
            for direction in range(options.directions):
                part = layer * options.directions + direction
                to_keep = (parts.gates[part], parts.cells[part]) if parts is not None else (None, None)
                of_part = [state[part] for state in states], [state[part] for state in last[: options.states]]
                sums, own = product(input, of_parts[part], options), found[..., direction * sizes.size :]
                _run(call, sums, of_parts[part], *of_part, own, to_keep, direction == 1)
            if parts is not None and not is_top:
                parts.outputs[layer].copy_(found)
            input = found
    return True


def _run(
    call: _Call,
    sums: Tensor,
    params: Sequence[Tensor],
    states: Sequence[Tensor],
    last: Sequence[Tensor],
    output: Tensor,
    to_keep: tuple[Tensor | None, Tensor | None],
    reversed_: bool,
) -> None:
    """Fills the columns of one direction of one layer from where `output` begins, and its last states."""
    options, sizes = call.options, call.sizes
    sums, weight, words = sums.contiguous(), _aligned(params[1]), call.words()
    bias = params[3].contiguous() if options.has_biases else None
    cells = call.memory(sizes.batch, sizes.hidden) if options.states == 2 else None
    is_normalized, normalization = options.mode == LAYER_NORM_LSTM, _of_normalization(params, options)
    products = call.memory(sizes.batch, 4 * sizes.hidden) if is_normalized else None
    of_tiles = call.of_tiles() if is_normalized else None
    native.cuda.recurrent(
        *map(_address, (sums, weight, bias, *normalization, *_two(states), output, *_two(last), *to_keep)),
        *map(_address, (cells, products, of_tiles, words)),
        call.numbers(weight.shape[1], reversed_, sums, output),
        options.eps,
        *queue(call.like),
    )


def backward_unsupported(grads: Sequence[Tensor], *rest: Any) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    input, batch_sizes, states, params, _, _, *numbers = rest
    return unsupported(input, batch_sizes, states, params, *numbers)


class _Part(NamedTuple):
    """What backward makes of a direction of a layer.

    Attributes:
        to_gates: (rows, kept gates, hidden), as of `Kept`.
        before: (rows, size), the hidden states before each step.
        to_normalized: (rows, hidden), of a normalized LSTM.
    """

    to_gates: Tensor
    before: Tensor
    to_normalized: Tensor | None


def recurrent_backward(
    results: Sequence[Tensor],
    grads: Sequence[Tensor],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    output: Tensor,
    kept: Tensor,
    *numbers: Any,
) -> bool:
    """Fills the gradients to the input, unless it is empty, the states and the parameters."""
    *rest, wants_input = numbers
    options = Options(*rest)
    sizes = sizes_of(input, batch_sizes, states, options)
    call = _call_of(input, batch_sizes, options, sizes)
    to_input, *to_rest = results
    if not sizes.batch:
        for result in results:
            result.zero_()
        return True
    to_states, to_params = to_rest[: len(states)], params_of(to_rest[len(states) :], options)
    found = [grad.float().contiguous() for grad in grads[1:]]
    found = [part.clone() if part is grad else part for part, grad in zip(found, grads[1:], strict=True)]
    states, parts = [state.contiguous() for state in states], kept_of(kept.detach(), sizes, options)
    grad, output = grads[0].detach().contiguous(), output.detach().contiguous()
    rows = by_steps(input.detach(), batch_sizes, options).reshape(sizes.rows, input.shape[-1])
    inputs = [rows, *(outputs.to(input.dtype) for outputs in parts.outputs)]
    of_parts = params_of([param.detach() for param in params], options)
    with _WITHOUT_AUTOCAST(input.device.type):
        for layer in reversed(range(options.layers)):
            to_layer = torch.zeros_like(inputs[layer]) if layer > 0 or wants_input else None
            for direction in range(options.directions):
                part = layer * options.directions + direction
                columns = slice(direction * sizes.size, None)
                of_part = [state[part] for state in states], [state[part] for state in found]
                made = _differentiate(
                    call,
                    of_parts[part],
                    *of_part,
                    grad[..., columns],
                    output[..., columns],
                    (parts.gates[part], parts.cells[part]),
                    direction == 1,
                )
                kept_of_part = parts.gates[part], parts.cells[part]
                to_sums = _fill(to_params[part], of_parts[part], made, kept_of_part, inputs[layer], options)
                if to_layer is not None:
                    weight = of_parts[part][0]
                    to_layer.addmm_(to_sums[:, : weight.shape[0]], weight)
            grad, output = to_layer, inputs[layer]
    for result, values in zip(to_states, found, strict=True):
        result.copy_(values)
    if wants_input:
        to_steps = by_steps(to_input, batch_sizes, options)
        to_steps.copy_(grad.view(to_steps.shape))
    return True


def _differentiate(
    call: _Call,
    params: Sequence[Tensor],
    states: Sequence[Tensor],
    to_states: Sequence[Tensor],
    grad: Tensor,
    output: Tensor,
    kept: tuple[Tensor, Tensor | None],
    reversed_: bool,
) -> _Part:
    """Goes back through one direction of one layer; of `to_states`, those of the last states, makes the first ones'."""
    options, sizes = call.options, call.sizes
    gates, cells = kept
    weight, words = _aligned(params[1].t()), call.words()
    is_normalized, normalization = options.mode == LAYER_NORM_LSTM, _of_normalization(params, options)
    made = _Part(
        torch.empty_like(gates),
        call.memory(sizes.rows, sizes.hidden, dtype=call.like.dtype),
        torch.empty_like(cells) if is_normalized else None,
    )
    normalizations = of_tiles = None
    if is_normalized:
        products, of_tiles = gates.flatten(1)[:, 4 * sizes.hidden :], call.of_tiles()
        normalizations = torch.stack([*_normalization(products, options.eps), *_normalization(cells, options.eps)], 1)
    native.cuda.recurrent_backward(
        *map(_address, (grad, output, weight, *normalization, *_two(states), *kept, normalizations)),
        *map(_address, (made.to_gates, made.before, *_two(to_states), made.to_normalized, of_tiles, words)),
        call.numbers(weight.shape[1], reversed_, grad, output),
        *queue(call.like),
    )
    return made


def _normalization(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The mean of each row, and one over its standard deviation."""
    variance, mean = torch.var_mean(x, -1, correction=0)
    return mean, (variance + eps).rsqrt()


def _fill(
    to_params: Sequence[Tensor],
    params: Sequence[Tensor],
    made: _Part,
    kept: tuple[Tensor, Tensor | None],
    input: Tensor,
    options: Options,
) -> Tensor:
    """Fills the gradients of a direction's parameters; returns those of the products with the input."""
    to_sums, before = made.to_gates.flatten(1), made.before
    if options.mode != LAYER_NORM_LSTM:
        to_sums = to_sums.to(input.dtype)
        fill_params(to_params, to_sums, input, before, options)
        return to_sums
    gates, cells = kept
    found = [torch.empty_like(param, dtype=torch.float32) for param in to_params]
    given = to_sums, gates.flatten(1), made.to_normalized, cells, input.float(), before.float()
    to_products = fill_normalized(found, [param.float() for param in params], *given, options.eps)
    for result, values in zip(to_params, found, strict=True):
        result.copy_(values)
    return to_products.to(input.dtype)
