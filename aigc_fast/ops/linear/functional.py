"""The public function: PyTorch's signature, autocast and the activation that follows, over the op."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.linear import reference
from aigc_fast.ops.linear.choice import is_pytorchs_at_once
from aigc_fast.ops.linear.operators import LINEAR, NOTHING_FOLLOWS
from aigc_fast.ops.linear.packing import USES_PER_LOOK
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import FUNCTIONS, Activation, name_and_slope, told_by_output
from aigc_fast.runtime.arguments import REFUSALS
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.backends import current as backend_in_force
from aigc_fast.runtime.backends import leave_to_pytorch
from aigc_fast.runtime.lowered import keeps_casts, lowered
from aigc_fast.runtime.native import PLAIN
from aigc_fast.runtime.operator import function_modes, in_force, is_compiling, kind_of_call
from aigc_fast.runtime.precision import check_precision
from aigc_fast.runtime.precision import precision as precision_in_force
from aigc_fast.runtime.recording import (
    has_torch_function_variadic,
    is_overridden,
    is_recorded,
    is_symbolic,
    record,
    tracing_state,
)

AUTOCAST = "autocast: PyTorch keeps what it has cast of the weights, and their gradients"


def _is_at_once(input: Any, weight: Any) -> bool:
    """Whether to call PyTorch at once; a compiled graph takes the op, and a mode may want to see it."""
    if is_compiling() or function_modes() or not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
        return False
    return weight.dim() > 0 and is_pytorchs_at_once(input, weight) and backend_in_force() == "auto"


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(f"{name} has dtype {tensor.dtype}: expected input's {input.dtype}")
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name} is on {tensor.device}: expected input's device {input.device}")
    if weight.dim() not in (1, 2):
        raise RuntimeError(f"weight has shape {tuple(weight.shape)}: expected (out_features, in_features)")
    depth = weight.shape[-1]
    if input.dim() == 0 or input.shape[-1] != depth:
        raise RuntimeError(f"input has shape {tuple(input.shape)}: expected to end in weight's {depth} inputs")
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise RuntimeError(f"bias has shape {tuple(bias.shape)}: expected {tuple(weight.shape[:-1])}, one per output")


def _key(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Hashable | None:
    """What a plain call is remembered by, before anything else is looked at; None for other calls."""
    try:
        if kind_of_call(input, weight, bias) != PLAIN:
            return None
        numbers = native.arguments(*rest)
        return native.signature(input, weight, bias), numbers, native.level(), precision_in_force()
    except REFUSALS:
        return None


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = None,
    *,
    precision: str | None = None,
) -> Tensor:
    """A linear layer, `torch.nn.functional.linear`, and the activation that follows, in one pass over the output.

    Equivalent PyTorch: `activation(F.linear(input, weight, bias))`. Weights are packed once for many calls without
    gradients; see "When something looks wrong" in the documentation.

    Args:
        input: (..., in_features), with any strides; float32 or bfloat16 on the native kernels, other dtypes and devices
            on PyTorch's.
        weight: (out_features, in_features) or (in_features,), of input's dtype.
        bias: (out_features,) or (1,), of input's dtype, or None.
        activation: as for `aigc_fast.functional.group_norm`.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (..., out_features) of input's dtype, or under autocast of autocast's; contiguous.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the activation or precision is unknown.
    """
    check_precision(precision)
    name, slope = name_and_slope(activation)
    if has_torch_function_variadic(input, weight, bias) or tracing_state() is not None:
        if is_symbolic(input, weight, bias):
            return record(linear, input, weight, bias, activation, precision=precision)
        if is_overridden(input, weight, bias) or is_recorded():
            return reference.linear(input, weight, bias, name, slope)
    if is_compiling() and isinstance(input, Tensor) and input.dtype == torch.float32:
        # Mostly left to PyTorch anyway, and a compiler fuses it with its surroundings.
        return reference.linear(input, weight, bias, name, slope)
    if name == "none" and _is_at_once(input, weight):
        try:
            return TF.linear(input, weight, bias)
        except REFUSALS:
            _check(input, weight, bias)
            raise
    key = _key(input, weight, bias, name, slope, precision)
    if key is not None and (known := LINEAR.choice.remembered(key)) is not None:
        return known(input, weight, bias, name, slope)
    if isinstance(input, Tensor) and has_autocast(input):
        if not _is_lowered(input, weight, bias):
            leave_to_pytorch("linear", AUTOCAST)
            return reference.linear(input, weight, bias, name, slope)
        rows = input.numel() // (input.shape[-1] or 1)
        input, weight, bias = lowered(input, weight, bias, rows // USES_PER_LOOK)
    if isinstance(bias, Tensor) and bias.shape == (1,) and isinstance(weight, Tensor) and weight.dim() == 2:
        bias, key = bias.expand(weight.shape[0]), key if weight.shape[0] == 1 else None
    _check(input, weight, bias)
    args = input, weight, bias, name, slope
    if key is None and _keeps_what_it_takes(name, slope, input, weight, bias):
        output = LINEAR(input, weight, bias, *NOTHING_FOLLOWS, precision=precision)
        return FUNCTIONS[name](output, slope)
    output = LINEAR(*args, precision=precision)
    if key is not None:
        runner = in_force(precision).run(LINEAR.choice.runner, args)
        LINEAR.choice.remember(key, runner.run)
    return output


def _is_lowered(input: Tensor, weight: Any, bias: Any) -> bool:
    """Whether a call under autocast is worth a weight that is kept in bfloat16."""
    fits = isinstance(weight, Tensor) and weight.dim() == 2 and (bias is None or isinstance(bias, Tensor))
    if not (fits and input.dim() > 0 and keeps_casts(input, weight, bias)):
        return False
    return native.level() == "avx512_bf16" or backend_in_force() != "auto"


def _keeps_what_it_takes(name: str, slope: float, *tensors: Tensor | None) -> bool:
    """Whether the activation's gradient needs its input, which would have to be computed again."""
    wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return wanted and not told_by_output(name, slope)
