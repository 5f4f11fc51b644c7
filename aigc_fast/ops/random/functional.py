"""The public functions: torch's signatures, over the ops."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from aigc_fast.ops.random import cpu
from aigc_fast.ops.random.operators import DROPOUT, NORMAL, UNIFORM, draw_key
from aigc_fast.ops.random.philox import KEY_LIMIT
from aigc_fast.runtime import rows
from aigc_fast.runtime.arguments import check_generator, check_probability, check_types, whole
from aigc_fast.runtime.backends import current as backend_in_force
from aigc_fast.runtime.operator import Operator, is_compiling, plain_eager
from aigc_fast.runtime.recording import has_torch_function_variadic, is_overridden, is_recorded, is_symbolic, record

_EXTENT = (int, numbers.Integral, torch.SymInt)


def _fill(
    function: Callable[..., Tensor],
    op: Operator,
    size: tuple[Any, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | int | None,
) -> Tensor:
    packed = size[0] if len(size) == 1 and isinstance(size[0], (list, tuple)) else size
    if is_symbolic(*packed):
        options = {"generator": generator, "dtype": dtype, "device": device}
        return handle_torch_function(function, packed, *size, **options)
    if device is dtype is generator is None and not rows.layouts and plain_eager() and backend_in_force() == "auto":
        try:
            output = cpu.fill(op.name, size)
        except (RuntimeError, TypeError):  # what follows names the argument
            output = None
        if output is not None:
            return output
    shape = size if len(size) != 1 or isinstance(size[0], _EXTENT) else size[0]
    if is_recorded():
        source = {} if generator is None else {"generator": generator}
        return getattr(torch, function.__name__)(shape, dtype=dtype, device=device, **source)
    shape = _checked_shape(shape)
    dtype = dtype or torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {type(dtype).__name__}: expected a torch.dtype")
    if not dtype.is_floating_point:
        raise RuntimeError(f"dtype={dtype}: expected a floating-point type")
    if generator is None and not is_compiling():
        key = torch.randint(KEY_LIMIT, (2,), device=device)
    else:
        key = draw_key(torch.zeros(0, device=device), generator)
    if rows.layouts and generator is None and shape:
        window = rows.window_of(shape[0], math.prod(shape[1:]))
        if window is not None:
            return window.cut(op((window.count, *shape[1:]), window.key(key), dtype))
    return op(shape, key, dtype)


def _checked_shape(shape: Any) -> list[Any]:
    extents = list(shape) if isinstance(shape, (tuple, list)) else [shape]
    extents = [extent if isinstance(extent, torch.SymInt) else whole("size", extent) for extent in extents]
    if any(extent < 0 for extent in extents):
        raise RuntimeError(f"size={extents}: expected no negative dimension")
    return extents


def randn(
    *size: int | Sequence[int],
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
) -> Tensor:
    """Standard normal numbers, like `torch.randn`, drawn on all threads; the same for any number of threads.

    Philox4x32-10 words go through the Box-Muller transform; element i depends only on i and on the key that is drawn
    from the generator. The numbers differ from torch's for the same seed.

    Args:
        size: the shape, as integers or as one sequence.
        generator: the source of the key; by default torch's default generator of the device.
        dtype: a floating-point type; by default torch's default.
        device: by default torch's default.

    Returns:
        A tensor of shape `size`.

    Raises:
        RuntimeError: for a negative size, a dtype that is not floating-point, or a generator of another device.
        TypeError: for arguments of other types; the message names the argument.
    """
    return _fill(randn, NORMAL, size, generator, dtype, device)


def rand(
    *size: int | Sequence[int],
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
) -> Tensor:
    """Uniform numbers on [0, 1), like `torch.rand`, drawn on all threads; the same for any number of threads.

    Each number has 24 random bits, 53 in float64. Arguments, result and errors are those of `randn`.
    """
    return _fill(rand, UNIFORM, size, generator, dtype, device)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`torch.nn.functional.dropout`, with a mask that is drawn on all threads and redrawn in backward, not stored.

    Each element is kept with probability 1 - p and scaled by 1 / (1 - p).

    Args:
        input: any shape, floating-point or complex.
        p: the probability of dropping an element, in [0, 1].
        training: if False, `input` itself is returned.
        inplace: whether to write the result into `input`.
        generator: the source of the mask's key; by default torch's default generator of the device.

    Returns:
        A tensor of the shape and dtype of `input`; `input` itself when nothing is dropped.

    Raises:
        ValueError: if p lies outside [0, 1].
        RuntimeError: for integer input, or a generator of another device.
        TypeError: for arguments of other types; the message names the argument.
    """
    if has_torch_function_variadic(input) or is_recorded():
        if is_symbolic(input):
            return record(dropout, input, p, training, inplace, generator=generator)
        if generator is None and (is_overridden(input) or is_recorded()):
            return torch.nn.functional.dropout(input, p, training, inplace)
    check_types(input=input)
    check_probability("p", p)
    check_generator(generator)
    if not training or p == 0.0 or input.numel() == 0:
        return input
    if not (input.is_floating_point() or input.is_complex()):
        if p == 1.0:
            return torch.nn.functional.dropout(input, p, training, inplace)
        raise RuntimeError(f"input has dtype {input.dtype}: expected a floating-point or complex type")
    key = draw_key(input, generator)
    if rows.layouts and generator is None:
        output = rows.drawn(lambda key, input: DROPOUT(input, key, float(p)), key, input)
    else:
        output = DROPOUT(input, key, float(p))
    return input.copy_(output) if inplace else output
