"""Where PyTorch's own call is all there is, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from aigc_fast.ops.recurrent import cpu, cuda
from aigc_fast.ops.recurrent.limits import (
    FEW_GRADIENT_UNITS,
    FEW_STEPS_WITH_GATES,
    FEW_STEPS_WITHOUT_GATES,
    HEAVY_STEP,
    LEAST_GRADIENT_BATCH,
    LIGHT_STEP,
    MANY_GRADIENT_UNITS,
    MOST_ROUNDED_BATCH,
)
from aigc_fast.ops.recurrent.sizes import (
    GATES,
    GRU,
    LAYER_NORM_LSTM,
    LSTM,
    RNN_RELU,
    RNN_TANH,
    Options,
    Sizes,
    sizes_of,
)
from aigc_fast.runtime import native
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.backends import is_automatic
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.machine import is_intels
from aigc_fast.runtime.operator import is_compiling, plain_eager


def _shapes_of_params(options: Options, hidden: int, size: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and the shape of every parameter, in their order."""
    gates = GATES[options.mode] * hidden
    for part in range(options.parts):
        layer, direction = divmod(part, options.directions)
        suffix = f"l{layer}{'_reverse' if direction else ''}"
        yield f"weight_ih_{suffix}", (gates, options.directions * size if layer else depth)
        yield f"weight_hh_{suffix}", (gates, size)
        for name in ("bias_ih", "bias_hh") if options.has_biases else ():
            yield f"{name}_{suffix}", (gates,)
        if options.mode == LAYER_NORM_LSTM:
            yield from ((f"{name}_{suffix}", (gates,)) for name in ("gain_ih", "gain_hh"))
            yield from ((f"{name}_{suffix}", (hidden,)) for name in ("gain_c", "bias_c"))
        elif size != hidden:
            yield f"weight_hr_{suffix}", (size, hidden)


def _misfit_of_params(params: Sequence[Tensor], options: Options, hidden: int, size: int, depth: int) -> Reason:
    wanted = list(_shapes_of_params(options, hidden, size, depth))
    if len(params) != len(wanted):
        return f"params has {len(params)} tensors: expected {len(wanted)}, {', '.join(name for name, _ in wanted)}"
    for param, (name, shape) in zip(params, wanted, strict=True):
        if param.shape != shape:
            return f"params: {name} has shape {tuple(param.shape)}, expected {shape}"
    return None


def is_open() -> bool:
    """Whether a call may become PyTorch's own: not with a forced backend, nor where that is traced or transformed."""
    return not is_compiling() and plain_eager() and is_automatic()


def _misfit_of_types(
    input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor], cast: bool
) -> Reason:
    if not (isinstance(input, Tensor) and input.is_floating_point()):
        return f"input is {getattr(input, 'dtype', type(input).__name__)}: expected a floating-point Tensor"
    for name, tensors in (("hx", states), ("params", params)):
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                return f"{name} has {type(tensor).__name__}: expected Tensors"
            if tensor.device != input.device:
                return f"{name} is on {tensor.device}: expected input's device {input.device}"
            if tensor.dtype != input.dtype and not cast:
                return f"{name} has dtype {tensor.dtype}: expected input's {input.dtype}"
    if batch_sizes is None:
        return None
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        return f"batch_sizes is {batch_sizes.dtype} on {batch_sizes.device}: expected integers of 64 bits on the CPU"
    return None


def misfit(
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    options: Options,
    cast: bool,
) -> Reason:
    """Which argument fits the others not, or None. PyTorch's call does not look, and may end the program.

    Args:
        input, batch_sizes, states, params, options: the op's.
        cast: whether PyTorch's call casts them to one dtype.
    """
    count = options.states
    if len(states) != count:
        return f"hx has {len(states)} tensors: expected {count}"
    reason = _misfit_of_types(input, batch_sizes, states, params, cast)
    if reason is not None:
        return reason
    dim = 3 if batch_sizes is None else 2
    if input.dim() != dim:
        return f"input must have {dim} dimensions, got {input.dim()}"
    lengths = input.shape if batch_sizes is None else batch_sizes.shape
    if lengths[1 if batch_sizes is None and options.batch_first else 0] == 0:
        return "Expected sequence length to be larger than 0 in RNN"
    if any(state.dim() != 3 for state in states):
        return f"hx has shape {tuple(states[0].shape)}: expected (layers * directions, batch, size)"
    batch = states[0].shape[1] if batch_sizes is not None else input.shape[0 if options.batch_first else 1]
    size, hidden = states[0].shape[2], states[-1].shape[2]
    for state, width in zip(states, (size, hidden)[: len(states)], strict=True):
        if state.shape != (options.parts, batch, width):
            return f"hx has shape {tuple(state.shape)}: expected ({options.parts}, {batch}, {width})"
    if not 0 < size <= hidden:
        return f"hx has {size} numbers of a hidden state: expected 1 to {hidden}, as many as units or fewer"
    return _misfit_of_params(params, options, hidden, size, input.shape[-1])


def leave_step(mode: int, rows: int, inputs: int, hidden: int) -> bool:
    """Whether PyTorch's cell, which is a few calls, costs less than ours."""
    weights = GATES[mode] * hidden * (inputs + hidden)
    suits = GATES[mode] > 1 and rows * weights >= LIGHT_STEP and weights <= HEAVY_STEP
    return not suits and is_open()


def _leave_card(
    input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor], options: Options
) -> Reason:
    """Why a call elsewhere than on the CPU is PyTorch's own, or None."""
    # PyTorch has no kernel for these.
    if (
        options.mode == LAYER_NORM_LSTM
        and cuda.unsupported(input, batch_sizes, states, params, *options, False) is None
    ):
        return None
    return f"the tensors are on {input.device}: PyTorch's own kernels compute there"


def _leave_gradients(sizes: Sizes, mode: int, packed: bool) -> Reason:
    """Why a call in float32 is PyTorch's with its gradients, or None."""
    if mode in (RNN_TANH, RNN_RELU, GRU):
        few = FEW_STEPS_WITH_GATES if mode == GRU else FEW_STEPS_WITHOUT_GATES
        return "few steps: PyTorch's call and its gradients cost less" if sizes.steps <= few else None
    if mode != LSTM or packed or sizes.projected:
        return None
    has_onednn = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    if not has_onednn or is_intels() or not native.has_wide_vectors() or sizes.batch < LEAST_GRADIENT_BATCH:
        return None
    if sizes.hidden <= FEW_GRADIENT_UNITS and sizes.rows * sizes.hidden >= MANY_GRADIENT_UNITS:
        return None
    return f"{sizes.batch} sequences with gradients: oneDNN's, that PyTorch calls, are as fast on this processor"


def leave(
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    options: Options,
    gradients: bool,
) -> Reason:
    """Why a call that fits is PyTorch's own, or None."""
    elsewhere = None if input.is_cpu else _leave_card(input, batch_sizes, states, params, options)
    if not is_open():
        return elsewhere if is_compiling() else None
    if has_autocast(input):
        return "autocast: PyTorch's own call obeys it"
    if elsewhere is not None or not input.is_cpu:
        return elsewhere
    missing = native.cpu_reason()
    if missing is not None:
        return missing
    sizes = sizes_of(input, batch_sizes, states, options)
    if input.dtype == torch.float32:
        return _leave_gradients(sizes, options.mode, batch_sizes is not None) if gradients else None
    if input.dtype != torch.bfloat16 or gradients or not cpu.takes_pairs(input, sizes):
        return f"{input.dtype}: PyTorch's own kernel computes in it"
    if sizes.batch > MOST_ROUNDED_BATCH:
        return f"{sizes.batch} sequences in bfloat16: PyTorch's product is as fast or faster"
    return None
