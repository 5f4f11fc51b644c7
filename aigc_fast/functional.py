"""The twin of `torch.nn.functional`: the same names and signatures, on aigc_fast's kernels where they win."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aigc_fast.ops.attention.functional import scaled_dot_product_attention
from aigc_fast.ops.attention.varlen import varlen_attn
from aigc_fast.ops.conv_transpose import functional as _conv
from aigc_fast.ops.random.functional import dropout, rand, randn
from aigc_fast.ops.recursion.functional import ar_recursion, lfilter, sample_wise_lpc
from aigc_fast.ops.reparameterize.functional import kl_standard_normal, reparameterize, reparameterize_kl

__all__ = [
    "ar_recursion",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "dropout",
    "kl_standard_normal",
    "lfilter",
    "rand",
    "randn",
    "reparameterize",
    "reparameterize_kl",
    "sample_wise_lpc",
    "scaled_dot_product_attention",
    "varlen_attn",
]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Convolution, `torch.nn.functional.conv1d` with the same numbers; PyTorch's own kernel where ours does not win.

    Args:
        input: (N, C_in, L) or (C_in, L); contiguous, channels_last or any strides.
        weight: (C_out, C_in / groups, K), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: one value or one per dimension.
        padding: zeros on both sides, one value or one per dimension; "same" (stride 1 only) or "valid".
        dilation: spacing of the kernel's elements.
        groups: divides C_in and C_out.
        precision: "highest", "high" or "medium" for this call; by default what PyTorch's switch says.

    Returns:
        (N, C_out, L_out) of input's dtype, channels_last when input or weight is; size
        (in + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an unknown precision.
    """
    return _conv.conv(1, input, weight, bias, stride, padding, dilation, groups, precision)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Convolution, `torch.nn.functional.conv2d` with the same numbers; PyTorch's own kernel where ours does not win.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W); contiguous, channels_last or any strides.
        weight: (C_out, C_in / groups, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: one value or one per dimension.
        padding: zeros on both sides, one value or one per dimension; "same" (stride 1 only) or "valid".
        dilation: spacing of the kernel's elements.
        groups: divides C_in and C_out.
        precision: "highest", "high" or "medium" for this call; by default what PyTorch's switch says.

    Returns:
        (N, C_out, H_out, W_out) of input's dtype, channels_last when input or weight is; size
        (in + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an unknown precision.
    """
    return _conv.conv(2, input, weight, bias, stride, padding, dilation, groups, precision)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Convolution, `torch.nn.functional.conv3d` with the same numbers; PyTorch's own kernel where ours does not win.

    Args:
        input: (N, C_in, D, H, W) or (C_in, D, H, W); contiguous, channels_last or any strides.
        weight: (C_out, C_in / groups, K_d, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: one value or one per dimension.
        padding: zeros on both sides, one value or one per dimension; "same" (stride 1 only) or "valid".
        dilation: spacing of the kernel's elements.
        groups: divides C_in and C_out.
        precision: "highest", "high" or "medium" for this call; by default what PyTorch's switch says.

    Returns:
        (N, C_out, D_out, H_out, W_out) of input's dtype, channels_last when input or weight is; size
        (in + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an unknown precision.
    """
    return _conv.conv(3, input, weight, bias, stride, padding, dilation, groups, precision)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution, `torch.nn.functional.conv_transpose1d` with the same numbers.

    The output's phases are plain convolutions: stride s gives s interleaved ones per dimension.

    Args:
        input: (N, C_in, L) or (C_in, L); contiguous, channels_last or any strides; float32 or bfloat16 on the
            native kernels, other dtypes and devices on PyTorch's.
        weight: (C_in, C_out / groups, K), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: of the convolution that this one is the gradient of, one value or one per dimension.
        padding: dilation * (kernel - 1) - padding zeros are added to both sides of the input.
        output_padding: added to one side of each output dimension; less than stride or dilation.
        groups: divides C_in and C_out.
        dilation: spacing of the kernel's elements.
        precision: "highest", "high" or "medium" for this call; by default what PyTorch's switch says.

    Returns:
        (N, C_out, L_out) of input's dtype, channels_last when input or weight is; size
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an unknown precision.
    """
    return _conv.conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation, precision)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution, `torch.nn.functional.conv_transpose2d` with the same numbers.

    The output's phases are plain convolutions: stride s gives s interleaved ones per dimension.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W); contiguous, channels_last or any strides; float32 or bfloat16 on the
            native kernels, other dtypes and devices on PyTorch's.
        weight: (C_in, C_out / groups, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: of the convolution that this one is the gradient of, one value or one per dimension.
        padding: dilation * (kernel - 1) - padding zeros are added to both sides of the input.
        output_padding: added to one side of each output dimension; less than stride or dilation.
        groups: divides C_in and C_out.
        dilation: spacing of the kernel's elements.
        precision: "highest", "high" or "medium" for this call; by default what PyTorch's switch says.

    Returns:
        (N, C_out, H_out, W_out) of input's dtype, channels_last when input or weight is; size
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an unknown precision.
    """
    return _conv.conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation, precision)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Transposed convolution, `torch.nn.functional.conv_transpose3d` with the same numbers.

    The output's phases are plain convolutions: stride s gives s interleaved ones per dimension.

    Args:
        input: (N, C_in, D, H, W) or (C_in, D, H, W); contiguous, channels_last or any strides; float32 or bfloat16 on
            the native kernels, other dtypes and devices on PyTorch's.
        weight: (C_in, C_out / groups, K_d, K_h, K_w), of input's dtype.
        bias: (C_out,), of input's dtype, or None.
        stride: of the convolution that this one is the gradient of, one value or one per dimension.
        padding: dilation * (kernel - 1) - padding zeros are added to both sides of the input.
        output_padding: added to one side of each output dimension; less than stride or dilation.
        groups: divides C_in and C_out.
        dilation: spacing of the kernel's elements.
        precision: "highest", "high" or "medium" for this call; by default what PyTorch's switch says.

    Returns:
        (N, C_out, D_out, H_out, W_out) of input's dtype, channels_last when input or weight is; size
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an unknown precision.
    """
    return _conv.conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation, precision)
