"""The public functions: PyTorch's signatures, autocast and unbatched input, over the ops."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose import operators as ops
from aigc_fast.ops.conv_transpose import reference
from aigc_fast.ops.conv_transpose.choice import LIGHT_KERNEL, is_light
from aigc_fast.ops.conv_transpose.plan import check_sizes
from aigc_fast.runtime import native
from aigc_fast.runtime.arguments import REFUSALS
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.backends import current as backend_in_force
from aigc_fast.runtime.lowered import lowered
from aigc_fast.runtime.native import PLAIN, WANTS_GRADIENT
from aigc_fast.runtime.operator import Operator, function_modes, in_force, is_compiling, kind_of_call
from aigc_fast.runtime.precision import check_precision
from aigc_fast.runtime.precision import precision as precision_in_force
from aigc_fast.runtime.recording import hand_over, has_torch_function_variadic, tracing_state

IntOrInts = int | Sequence[int]

_INTEGERS = (int, torch.SymInt)
_float32 = torch.float32
_SIZES = (("stride", "padding", "dilation"), ("stride", "padding", "output_padding", "dilation"))


def _expand(value: IntOrInts, spatial: int) -> tuple[int, ...] | None:
    """One integer per dimension, or as many as were given; None where they are of other types."""
    if type(value) in _INTEGERS:
        return (value,) * spatial
    if type(value) not in (tuple, list):
        return None
    for item in value:
        if type(item) not in _INTEGERS:
            return None
    return tuple(value) * spatial if len(value) == 1 else tuple(value)


def _converted(value: Any, spatial: int) -> tuple[int, ...]:
    """`_expand` of what PyTorch takes for integers: NumPy's, tensors of one, subclasses."""
    values = tuple(index(item) for item in (value if isinstance(value, (tuple, list)) else (value,)))
    return values * spatial if len(values) == 1 else values


def _integers(
    transposed: bool,
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: tuple[IntOrInts, ...],
    groups: int,
) -> tuple[list[tuple[int, ...]], int]:
    """The sizes, one integer per dimension each, and the groups.

    Raises:
        TypeError: PyTorch's own for what it does not take for integers, as 2.0 and True.
    """
    expanded = [_expand(value, spatial) for value in sizes]
    if None not in expanded and type(groups) in _INTEGERS:
        return expanded, groups
    _check(input, weight, bias, spatial)
    pytorchs = (reference.CONV_TRANSPOSE if transposed else reference.CONV)[spatial]
    shapes = [torch.empty(tensor.shape, device="meta") for tensor in (input, weight)]
    pytorchs(*shapes, groups=groups, **dict(zip(_SIZES[transposed], sizes, strict=True)))
    return [_converted(value, spatial) for value in sizes], index(groups)


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, spatial: int) -> None:
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")
    if input.dim() not in (spatial + 1, spatial + 2):
        raise RuntimeError(
            f"input has shape {tuple(input.shape)}: expected {spatial + 2} dimensions (N, C, *spatial) "
            f"or {spatial + 1} without the batch"
        )
    if weight.dim() != spatial + 2:
        raise RuntimeError(f"weight has shape {tuple(weight.shape)}: expected {spatial + 2} dimensions")


def _is_light(input: Tensor, weight: Tensor, groups: int, transposed: int) -> bool:
    """Whether to call PyTorch at once, before anything else is looked at.

    A compiled graph takes the op, whose choice puts no conditions on symbolic sizes; a mode may want to see it.
    """
    # The first check of `is_light`, written out because it decides most batches.
    if input.dtype is _float32 and input.shape[0] != 1:
        return False
    if is_compiling() or function_modes():
        return False
    return is_light(input, weight, groups, transposed) and backend_in_force() == "auto"


def _key(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: object) -> Hashable | None:
    """What a plain call, or one that wants a gradient, is remembered by, before anything else is looked at; None for
    other calls."""
    kind = kind_of_call(input, weight, bias)
    if kind not in (PLAIN, WANTS_GRADIENT):
        return None
    return kind, native.signature(input, weight, bias), native.arguments(*rest), native.level(), precision_in_force()


def _remember(op: Operator, key: Any, precision: str | None, args: tuple[Any, ...]) -> None:
    """Keeps what ran a call: of one that wants a gradient PyTorch's function, or that the op has to see it."""
    runner = in_force(precision).run(op.choice.runner, args)
    op.choice.remember(key, (runner.run if key[0] == PLAIN else runner.pytorchs, args[3:]))


def _call(
    op: Operator,
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: tuple[tuple[int, ...], ...],
    groups: int,
    precision: str | None,
    key: Hashable | None,
) -> Tensor:
    """Calls the op on a batch, and remembers what ran it."""
    batched = True
    try:
        if has_autocast(input):
            input, weight, bias = lowered(input, weight, bias, input.numel() // (input.shape[-1 - spatial] or 1))
        batched = input.dim() != spatial + 1
        if batched:
            output = op(input, weight, bias, *sizes, groups, precision=precision)
            if key is not None:
                _remember(op, key, precision, (input, weight, bias, *sizes, groups))
            return output
        return op(input.unsqueeze(0), weight, bias, *sizes, groups, precision=precision).squeeze(0)
    except REFUSALS:
        _check(input, weight, bias, spatial)
        ops.check(op, input if batched else input.unsqueeze(0), weight, bias, *sizes, groups)
        raise


def _conv(
    public: Callable[..., Tensor],
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts | str,
    dilation: IntOrInts,
    groups: int,
    precision: str | None,
) -> Tensor:
    """`torch.nn.functional.conv{spatial}d`."""
    check_precision(precision)
    if has_torch_function_variadic(input, weight, bias) or tracing_state() is not None:
        tensors, rest = (input, weight, bias), (stride, padding, dilation, groups)
        found = hand_over(public, reference.CONV[spatial], tensors, rest, precision=precision)
        if found is not None:
            return found
    try:
        if _is_light(input, weight, groups, False):
            return reference.CONV[spatial](input, weight, bias, stride, padding, dilation, groups)
        key = _key(input, weight, bias, spatial, stride, padding, dilation, groups, precision)
        if key is not None and (found := ops.conv.choice.remembered(key)) is not None:
            run, rest = found
            if run is not None:
                return run(input, weight, bias, *rest)
            key = None
    except REFUSALS:
        key = None
    is_named = isinstance(padding, str)
    sizes = (stride, 0 if is_named else padding, dilation)
    (strides, paddings, dilations), groups = _integers(False, spatial, input, weight, bias, sizes, groups)
    if is_named:
        _check(input, weight, bias, spatial)
        check_sizes(spatial, strides, paddings, paddings, dilations)
        padded, paddings = _named_padding(padding, input, weight, strides, dilations)
        key = key if padded is input else None
        input = padded
    return _call(ops.conv, spatial, input, weight, bias, (strides, paddings, dilations), groups, precision, key)


def _named_padding(
    padding: str, input: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """The input and the padding that "same" or "valid" stand for; an odd total is padded at the far end."""
    if padding == "valid":
        return input, (0,) * len(stride)
    if padding != "same":
        raise RuntimeError(f"padding={padding!r}: expected integers, 'same' or 'valid'")
    if max(stride) > 1:
        raise RuntimeError(f"padding='same' needs a stride of 1, got stride={stride}")
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(total % 2 for total in totals):
        extra = [side for total in reversed(totals) for side in (0, total % 2)]
        input = torch.nn.functional.pad(input, extra)
    return input, tuple(total // 2 for total in totals)


def _conv_transpose(
    public: Callable[..., Tensor],
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts,
    output_padding: IntOrInts,
    groups: int,
    dilation: IntOrInts,
    precision: str | None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose{spatial}d`."""
    check_precision(precision)
    if has_torch_function_variadic(input, weight, bias) or tracing_state() is not None:
        tensors, rest = (input, weight, bias), (stride, padding, output_padding, groups, dilation)
        found = hand_over(public, reference.CONV_TRANSPOSE[spatial], tensors, rest, precision=precision)
        if found is not None:
            return found
    try:
        # Light calls have narrow kernels or one spatial dimension; others are spared a second check.
        narrow = spatial == 1 or weight.size(-1) <= LIGHT_KERNEL or weight.size(-2) <= LIGHT_KERNEL
        if narrow and _is_light(input, weight, groups, True):
            pytorchs = reference.CONV_TRANSPOSE[spatial]
            return pytorchs(input, weight, bias, stride, padding, output_padding, groups, dilation)
        rest = stride, padding, output_padding, groups, dilation, precision
        key = _key(input, weight, bias, spatial, *rest)
        if key is not None and (found := ops.conv_transpose.choice.remembered(key)) is not None:
            run, rest = found
            if run is not None:
                return run(input, weight, bias, *rest)
            key = None
    except REFUSALS:
        key = None
    sizes, groups = _integers(True, spatial, input, weight, bias, (stride, padding, output_padding, dilation), groups)
    return _call(ops.conv_transpose, spatial, input, weight, bias, tuple(sizes), groups, precision, key)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Convolution, `torch.nn.functional.conv1d` with the same results; runs PyTorch's own kernel where ours is not
    faster.

    Args:
        input: (N, C_in, L) or (C_in, L); contiguous, channels_last or with any strides.
        weight: (C_out, C_in / groups, K), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: one value or one per dimension.
        padding: zeros added on both sides, one value or one per dimension; "same" (stride 1 only) or "valid".
        dilation: spacing between the kernel's elements.
        groups: a divisor of C_in and C_out.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (N, C_out, L_out) of input's dtype, channels_last when input or weight is; output size
        (in + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the precision is unknown.
    """
    return _conv(conv1d, 1, input, weight, bias, stride, padding, dilation, groups, precision)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Convolution, `torch.nn.functional.conv2d` with the same results; runs PyTorch's own kernel where ours is not
    faster.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W); contiguous, channels_last or with any strides.
        weight: (C_out, C_in / groups, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: one value or one per dimension.
        padding: zeros added on both sides, one value or one per dimension; "same" (stride 1 only) or "valid".
        dilation: spacing between the kernel's elements.
        groups: a divisor of C_in and C_out.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (N, C_out, H_out, W_out) of input's dtype, channels_last when input or weight is; output size
        (in + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the precision is unknown.
    """
    return _conv(conv2d, 2, input, weight, bias, stride, padding, dilation, groups, precision)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Convolution, `torch.nn.functional.conv3d` with the same results; runs PyTorch's own kernel where ours is not
    faster.

    Args:
        input: (N, C_in, D, H, W) or (C_in, D, H, W); contiguous, channels_last or with any strides.
        weight: (C_out, C_in / groups, K_d, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: one value or one per dimension.
        padding: zeros added on both sides, one value or one per dimension; "same" (stride 1 only) or "valid".
        dilation: spacing between the kernel's elements.
        groups: a divisor of C_in and C_out.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (N, C_out, D_out, H_out, W_out) of input's dtype, channels_last when input or weight is; output size
        (in + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the precision is unknown.
    """
    return _conv(conv3d, 3, input, weight, bias, stride, padding, dilation, groups, precision)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution, `torch.nn.functional.conv_transpose1d` with the same results.

    Computed as interleaved convolutions, one for each phase of the output: s per dimension for stride s.

    Args:
        input: (N, C_in, L) or (C_in, L); contiguous, channels_last or any strides; float32 or bfloat16 on the
            native kernels, other dtypes and devices on PyTorch's.
        weight: (C_in, C_out / groups, K), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: that of the convolution whose input gradient this is; one value or one per dimension.
        padding: dilation * (kernel - 1) - padding zeros are added on both sides of the input.
        output_padding: added to one side of each output dimension; less than the stride or the dilation.
        groups: a divisor of C_in and C_out.
        dilation: spacing between the kernel's elements.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (N, C_out, L_out) of input's dtype, channels_last when input or weight is; output size
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the precision is unknown.
    """
    return _conv_transpose(
        conv_transpose1d, 1, input, weight, bias, stride, padding, output_padding, groups, dilation, precision
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution, `torch.nn.functional.conv_transpose2d` with the same results.

    Computed as interleaved convolutions, one for each phase of the output: s per dimension for stride s.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W); contiguous, channels_last or any strides; float32 or bfloat16 on the
            native kernels, other dtypes and devices on PyTorch's.
        weight: (C_in, C_out / groups, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: that of the convolution whose input gradient this is; one value or one per dimension.
        padding: dilation * (kernel - 1) - padding zeros are added on both sides of the input.
        output_padding: added to one side of each output dimension; less than the stride or the dilation.
        groups: a divisor of C_in and C_out.
        dilation: spacing between the kernel's elements.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (N, C_out, H_out, W_out) of input's dtype, channels_last when input or weight is; output size
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the precision is unknown.
    """
    return _conv_transpose(
        conv_transpose2d, 2, input, weight, bias, stride, padding, output_padding, groups, dilation, precision
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution, `torch.nn.functional.conv_transpose3d` with the same results.

    Computed as interleaved convolutions, one for each phase of the output: s per dimension for stride s.

    Args:
        input: (N, C_in, D, H, W) or (C_in, D, H, W); contiguous, channels_last or any strides; float32 or bfloat16 on
            the native kernels, other dtypes and devices on PyTorch's.
        weight: (C_in, C_out / groups, K_d, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: that of the convolution whose input gradient this is; one value or one per dimension.
        padding: dilation * (kernel - 1) - padding zeros are added on both sides of the input.
        output_padding: added to one side of each output dimension; less than the stride or the dilation.
        groups: a divisor of C_in and C_out.
        dilation: spacing between the kernel's elements.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (N, C_out, D_out, H_out, W_out) of input's dtype, channels_last when input or weight is; output size
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
        ValueError: if the precision is unknown.
    """
    return _conv_transpose(
        conv_transpose3d, 3, input, weight, bias, stride, padding, output_padding, groups, dilation, precision
    )
