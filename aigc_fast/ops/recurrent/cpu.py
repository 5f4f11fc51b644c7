"""The native kernels of csrc/cpu/recurrent.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.recurrent.limits import LEAST_STEP_WORK
from aigc_fast.ops.recurrent.packing import packing
from aigc_fast.ops.recurrent.sizes import Options, Sizes, kept_of, params_of, sizes_of
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.kept import MANY_USES


def unsupported(input: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cpu(input, input.dtype, (torch.float32,))


def _counts(batch_sizes: Tensor | None, sizes: Sizes) -> list[int]:
    """The rows of each step of packed sequences; none of others."""
    if batch_sizes is None:
        return []
    counts = batch_sizes.tolist()
    falls = all(first >= second for first, second in pairwise(counts))
    if not falls or counts[-1] < 1 or counts[0] != sizes.batch or sum(counts) != sizes.rows:
        shown = counts if len(counts) < 9 else f"[{counts[0]}, ..., {counts[-1]}]"
        raise RuntimeError(
            f"batch_sizes is {shown}: expected to fall from hx's batch, {sizes.batch}, to at least 1, and a sum of "
            f"{sizes.rows}, the rows of data"
        )
    return counts


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _by_steps(tensor: Tensor, batch_sizes: Tensor | None, options: Options) -> Tensor:
    """(steps, batch, size), or (rows, size) of packed sequences, as a view."""
    return tensor.transpose(0, 1) if batch_sizes is None and options.batch_first else tensor


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().contiguous() for tensor in tensors]


def _packed(params: Sequence[Tensor], mode: int, sizes: Sizes, options: Options) -> list[Tensor | None]:
    """The weights of each part as they are kept packed; None where the call packs them."""
    # A digest of some cache lines costs little beside one step; of whole weights, beside many.
    uses = MANY_USES if sizes.rows >= MANY_USES else 1
    weights = [weight for part in params_of(params, options) for weight in part[:2]]
    level = native.cpu.level
    return [
        packing(level, mode, sizes.hidden, weight.shape[1], uses).kept(weight) if weight.is_contiguous() else None
        for weight in weights
    ]


def recurrent(
    results: tuple[Tensor, ...],
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
    counts = _counts(batch_sizes, sizes)
    output, *last, kept = results
    parts = kept_of(kept, sizes, options) if keep else None
    packed = _packed(params, options.mode, sizes, options)
    native.cpu.kernels.recurrent(
        _dense_rows(_by_steps(input, batch_sizes, options)).detach(),
        counts,
        sizes.steps,
        sizes.batch,
        _contiguous(states),
        _contiguous(params),
        [0 if weight is None else weight.data_ptr() for weight in packed],
        [_by_steps(output, batch_sizes, options), *last],
        [] if parts is None else [*_pairs(parts.gates, parts.cells), *parts.outputs],
        options.mode,
        options.layers,
        options.directions,
        sizes.hidden,
        sizes.projected,
        options.has_biases,
        LEAST_STEP_WORK,
    )
    return True


def _pairs(gates: Sequence[Tensor], cells: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [tensor for pair in zip(gates, cells, strict=True) for tensor in pair]
