"""The public functions: PyTorch's signatures and the activation that follows, over the ops."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.norm import reference
from aigc_fast.ops.norm.choice import is_light_for_rows, is_pytorchs_at_once
from aigc_fast.ops.norm.operators import GROUP_NORM, LAYER_NORM
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import FUNCTIONS, Activation, name_and_slope
from aigc_fast.runtime.arguments import REFUSALS, number, whole
from aigc_fast.runtime.autocast import any_autocast
from aigc_fast.runtime.backends import current as backend_in_force
from aigc_fast.runtime.backends import leave_to_pytorch
from aigc_fast.runtime.native import PLAIN
from aigc_fast.runtime.operator import Operator, function_modes, is_compiling, kind_of_call
from aigc_fast.runtime.recording import (
    has_torch_function_variadic,
    is_overridden,
    is_recorded,
    is_symbolic,
    record,
    tracing_state,
)

# PyTorch raises more than `REFUSALS`: for one value per group, and for no groups.
NOT_FITTING = (*REFUSALS, ValueError, ZeroDivisionError)
RUNNING_STATISTICS = "running statistics: PyTorch's own norm keeps and takes them"


def _is_at_once(input: Any, light: Callable[..., bool], *rest: Any) -> bool:
    """Whether to call PyTorch before anything else is looked at; what it refuses is looked at again.

    A compiled graph takes the op, and a mode may want to see it.
    """
    if is_compiling() or function_modes() or not isinstance(input, Tensor):
        return False
    return light(input, *rest) and backend_in_force() == "auto"


def _check_tensors(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (tensor is None and name != "input"):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name} is on {tensor.device}: expected input's device {input.device}")


def _check_parameters(
    input: Tensor, shape: tuple[int, ...], per: str, weight: Tensor | None, bias: Tensor | None
) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}: expected {shape}, one value per {per}")
    _check_dtypes(input, weight, bias)


def _check_dtypes(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Under autocast any are taken: norms compute in float32 there."""
    if any_autocast():
        return
    dtypes = (input.dtype, torch.float32) if input.dtype in (torch.bfloat16, torch.float16) else (input.dtype,)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in dtypes:
            raise RuntimeError(f"{name} has dtype {tensor.dtype}: expected {' or '.join(map(str, dtypes))}, as input")


def _check_groups(input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    _check_tensors(input, weight, bias)
    shape = tuple(input.shape)
    if len(shape) < 2:
        raise RuntimeError(f"input has shape {shape}: expected at least 2 dimensions (N, C, ...)")
    if groups < 1 or shape[1] % groups:
        raise RuntimeError(f"num_groups={groups}: expected a divisor of input's {shape[1]} channels, at least 1")
    _check_parameters(input, shape[1:2], "channel", weight, bias)
    if prod(shape) == groups:
        raise ValueError(f"input has shape {shape}: expected more than 1 value per channel, in {groups} groups")


def _check_instances(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    _check_tensors(input, weight, bias)
    shape = tuple(input.shape)
    if len(shape) < 2 or prod(shape[2:]) == 1:
        raise ValueError(f"input has shape {shape}: expected (N, C, ...) with more than 1 value per channel")
    _check_parameters(input, shape[1:2], "channel", weight, bias)


def _check_rows(input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> None:
    _check_tensors(input, weight, bias)
    if not shape:
        raise RuntimeError("normalized_shape=(): expected at least one dimension")
    if tuple(input.shape)[-len(shape) :] != shape:
        raise RuntimeError(f"input has shape {tuple(input.shape)}: expected to end in normalized_shape={shape}")
    _check_parameters(input, shape, "column", weight, bias)


def _key(kind: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Hashable | None:
    """What a plain call is remembered by, before anything else is looked at; None for other calls."""
    try:
        if kind_of_call(input, weight, bias) != PLAIN:
            return None
        return kind, native.signature(input, weight, bias), native.arguments(*rest), native.level()
    except REFUSALS:
        return None


def _call(op: Operator, args: tuple[Any, ...], key: Hashable | None) -> Tensor:
    """Calls the op, and remembers what runs a plain call."""
    if key is None:
        return op(*args)
    run = op.choice.runner(args).run
    op.choice.remember(key, (run, args[3:]))
    return run(*args)


def _handed_over(
    function: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    tensors: Sequence[Any],
    given: tuple[Any, ...],
    to_theirs: tuple[Any, ...],
) -> Tensor | None:
    """A call that is not ours: recorded by torch.fx as `given`, or PyTorch's own; None for others."""
    if is_symbolic(*tensors):
        return record(function, *given)
    return theirs(*to_theirs) if is_overridden(*tensors) or is_recorded() else None


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: Activation = None,
) -> Tensor:
    """Group norm, `torch.nn.functional.group_norm`, and the activation that follows, in one pass over memory.

    Equivalent PyTorch: `activation(F.group_norm(input, num_groups, weight, bias, eps))`.
    Method: Wu and He, "Group normalization", 2018; means and variances are computed block by block, in two passes over
    each, and combined in float64 (Chan, Golub and LeVeque, 1979).

    Args:
        input: (N, C, ...), contiguous, channels_last or with any strides; float32, bfloat16 or float16 on the native
            kernels, other dtypes and devices on PyTorch's.
        num_groups: a divisor of C.
        weight: (C,), of input's dtype or float32, or None.
        bias: as `weight`.
        eps: added to the variances, for numerical stability.
        activation: "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh" or "elu"; or a
            pair of "leaky_relu" and its negative slope (0.01 by default), or of "elu" and its alpha (1); None for no
            activation.

    Returns:
        The shape and dtype of `input`, channels_last where it is.

    Raises:
        RuntimeError: if shapes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the activation is unknown, or if there is only one value per group.
    """
    name, slope = name_and_slope(activation)
    if has_torch_function_variadic(input, weight, bias) or tracing_state() is not None:
        given = input, num_groups, weight, bias, eps, activation
        to_theirs = input, weight, bias, num_groups, eps, name, slope
        found = _handed_over(group_norm, reference.group_norm, (input, weight, bias), given, to_theirs)
        if found is not None:
            return found
    if _is_at_once(input, is_pytorchs_at_once, num_groups, name):
        try:
            return FUNCTIONS[name](TF.group_norm(input, num_groups, weight, bias, eps), slope)
        except NOT_FITTING:
            pass  # the checks below name the argument
    key = _key("groups", input, weight, bias, num_groups, eps, name, slope)
    if key is not None and (known := GROUP_NORM.choice.remembered(key)) is not None:
        run, rest = known
        return run(input, weight, bias, *rest)
    num_groups = whole("num_groups", num_groups)
    _check_groups(input, num_groups, weight, bias)
    return _call(GROUP_NORM, (input, weight, bias, num_groups, number("eps", eps), name, slope), key)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Activation = None,
) -> Tensor:
    """Instance norm, `torch.nn.functional.instance_norm`, and the activation that follows, in one pass over memory.

    Equivalent PyTorch: `activation(F.instance_norm(input, running_mean, running_var, weight, bias, ...))`. Calls with
    running statistics are left to PyTorch. Method: Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016.

    Args:
        input: (N, C, ...) with more than one value per channel, with any strides; dtypes as for `group_norm`.
        running_mean: (C,) or None; updated with `use_input_stats`, otherwise used in place of the input's means.
        running_var: (C,) or None; likewise for the variances.
        weight: (C,), of input's dtype or float32, or None.
        bias: as `weight`.
        use_input_stats: whether to normalize by the input's own means and variances; True by default.
        momentum: the weight of the new values in the running statistics.
        eps: added to the variances, for numerical stability.
        activation: as for `group_norm`.

    Returns:
        The shape and dtype of `input`, contiguous.

    Raises:
        RuntimeError, TypeError, ValueError: as for `group_norm`.
    """
    name, slope = name_and_slope(activation)
    tensors = input, running_mean, running_var, weight, bias
    if has_torch_function_variadic(*tensors) or tracing_state() is not None:
        options = use_input_stats, momentum, eps
        found = _handed_over(
            instance_norm,
            reference.instance_norm,
            tensors,
            (*tensors, *options, activation),
            (*tensors, *options, name, slope),
        )
        if found is not None:
            return found
    if running_mean is not None or running_var is not None or not use_input_stats:
        leave_to_pytorch("group_norm", RUNNING_STATISTICS)
        _check_tensors(input, weight, bias)
        _check_dtypes(input, weight, bias)
        return reference.instance_norm(*tensors, use_input_stats, momentum, eps, name, slope)
    key = _key("instances", input, weight, bias, eps, name, slope)
    if key is not None and (known := GROUP_NORM.choice.remembered(key)) is not None:
        run, rest = known
        return run(input, weight, bias, *rest)
    _check_instances(input, weight, bias)
    # PyTorch's output is contiguous whatever the input is.
    dense = input.contiguous()
    key = key if dense is input else None
    return _call(GROUP_NORM, (dense, weight, bias, input.shape[1], number("eps", eps), name, slope), key)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: Activation = None,
) -> Tensor:
    """Layer norm, `torch.nn.functional.layer_norm`, and the activation that follows, in one pass over memory.

    Equivalent PyTorch: `activation(F.layer_norm(input, normalized_shape, weight, bias, eps))`.
    Method: Ba, Kiros and Hinton, "Layer normalization", 2016.

    Args:
        input: (..., *normalized_shape), with any strides; dtypes as for `group_norm`.
        normalized_shape: the last dimensions, which share a mean and a variance.
        weight: of shape `normalized_shape`, of input's dtype or float32, or None.
        bias: as `weight`.
        eps: added to the variances, for numerical stability.
        activation: as for `group_norm`.

    Returns:
        The shape and dtype of `input`, contiguous.

    Raises:
        RuntimeError: if shapes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor, or `normalized_shape` not a sequence of integers.
        ValueError: if the activation is unknown.
    """
    name, slope = name_and_slope(activation)
    if has_torch_function_variadic(input, weight, bias) or tracing_state() is not None:
        given = input, normalized_shape, weight, bias, eps, activation
        to_theirs = input, weight, bias, normalized_shape, eps, name, slope
        found = _handed_over(layer_norm, reference.layer_norm, (input, weight, bias), given, to_theirs)
        if found is not None:
            return found
    if is_compiling() and isinstance(input, Tensor) and input.dtype == torch.float32:
        # Always left to PyTorch in eager mode; a compiler fuses it with its surroundings.
        return reference.layer_norm(input, weight, bias, normalized_shape, eps, name, slope)
    if _is_at_once(input, is_light_for_rows):
        try:
            return FUNCTIONS[name](TF.layer_norm(input, normalized_shape, weight, bias, eps), slope)
        except NOT_FITTING:
            pass  # the checks below name the argument
    key = _key("rows", input, weight, bias, normalized_shape, eps, name, slope)
    if key is not None and (known := LAYER_NORM.choice.remembered(key)) is not None:
        run, rest = known
        return run(input, weight, bias, *rest)
    shape = _integers(normalized_shape)
    _check_rows(input, shape, weight, bias)
    return _call(LAYER_NORM, (input, weight, bias, shape, number("eps", eps), name, slope), key)


def _integers(normalized_shape: Any) -> tuple[int, ...]:
    if not isinstance(normalized_shape, (tuple, list)):
        raise TypeError(f"normalized_shape is {type(normalized_shape).__name__}: expected a sequence of integers")
    return tuple(
        size if isinstance(size, torch.SymInt) else whole("normalized_shape", size) for size in normalized_shape
    )
