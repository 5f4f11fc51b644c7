"""The native kernels of csrc/cuda/recurrent.cu: all steps of a direction of a layer in one launch, of a batch of few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.recurrent.limits import MOST_SHARED
from aigc_fast.ops.recurrent.reference import product
from aigc_fast.ops.recurrent.sizes import LAYER_NORM_LSTM, Options, Sizes, counts_of, kept_of, params_of, sizes_of
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32

MOST_BATCH = 8
_UNITS_OF_TILE, _COLUMNS_AT_ONCE = 8, 4


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
        return "hidden states are projected: the kernel takes up to as many numbers as units, not fewer"
    return None


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

    def words(self) -> Tensor:
        """By which the blocks of a launch tell each other how far they are."""
        tiles = -(-self.sizes.hidden // _UNITS_OF_TILE)
        return torch.zeros(tiles, dtype=torch.int32, device=self.like.device)


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
    weight = TF.pad(weight, (0, -weight.shape[1] % _COLUMNS_AT_ONCE)).contiguous()
    return weight.clone() if weight.data_ptr() % (_COLUMNS_AT_ONCE * weight.itemsize) else weight


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


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
    for layer in range(options.layers):
        is_top = layer == options.layers - 1
        width = options.directions * sizes.size
        found = output if is_top else call.memory(sizes.rows, width, dtype=input.dtype)
        for direction in range(options.directions):
            part = layer * options.directions + direction
            to_keep = (parts.gates[part], parts.cells[part]) if parts is not None else (None, None)
            of_part = [state[part] for state in states], [state[part] for state in last[: options.states]]
            own = found[..., direction * sizes.size :]
            _run(call, product(input, of_parts[part], options), of_parts[part], *of_part, own, to_keep, direction == 1)
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
    native.cuda.recurrent(
        sums.data_ptr(),
        weight.data_ptr(),
        _address(bias),
        *(_address(state) for state in (*states, None)[:2]),
        output.data_ptr(),
        *(_address(state) for state in (*last, None)[:2]),
        *map(_address, to_keep),
        _address(cells),
        words.data_ptr(),
        call.numbers(weight.stride(0), reversed_, sums, output),
        *queue(call.like),
    )
