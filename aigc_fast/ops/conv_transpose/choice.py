"""Where PyTorch's own convolution is as fast or faster: what automatic choice leaves to it, and why.

The limits are measured ones: bench/test_bench_conv_transpose.py repeats them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast import _native
from aigc_fast.ops.conv_transpose.plan import Plan, memory_format

# Below this many multiply-adds a call's overhead counts most, and PyTorch's own call has less of it.
LEAST_WORK = 100_000
FEW_CHANNELS = 4
LEAST_GROUP_CHANNELS = 8
WIDE_CHANNELS = 16
FEW_PIXELS = 512
WIDE_KERNEL = 4


def has_wide_vectors() -> bool:
    """Whether the kernels in use have vectors of 64 bytes."""
    return _native.cpu.level not in (None, "baseline", "avx2")


def rounds_natively() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return _native.cpu.level in ("avx512_bf16", "amx")


def is_small(input: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's own call costs less than the way to our kernels, before any plan is made."""
    return input.dim() > 1 and input.numel() * weight.numel() < LEAST_WORK * input.shape[1]


def _shared(plan: Plan, dtype: torch.dtype, out_channels: int) -> str | None:
    groups = plan.geometry[-2]
    if dtype == torch.bfloat16 and _native.cpu.level == "amx":
        return "bfloat16 on a processor with AMX: PyTorch's kernels use its tiles"
    if groups > 1 and out_channels // groups < LEAST_GROUP_CHANNELS:
        return f"{out_channels // groups} output channels per group: too few to fill a vector"
    return None


def forward_slower(input: Tensor, weight: Tensor, plan: Plan) -> str | None:
    """Why PyTorch's forward is preferred for this convolution or transposed convolution, or None."""
    *_, groups, transposed = plan.geometry
    in_channels = input.shape[1] // groups
    if plan.multiply_adds < LEAST_WORK:
        return f"{plan.multiply_adds} multiply-adds: PyTorch's own call costs less"
    kernel, stride = plan.geometry[:3], plan.geometry[3:6]
    channels_last = memory_format(input, weight) != torch.contiguous_format
    few = in_channels <= FEW_CHANNELS and not plan.is_matrix
    if not transposed and few and (channels_last or max(stride) == 1) and not has_wide_vectors():
        return f"{in_channels} input channels: too few for a product"
    if not transposed and max(stride) > 1 and max(kernel) > WIDE_KERNEL and input.dtype == torch.float32:
        return f"a plain convolution with stride {max(stride)} and kernel {max(kernel)}: PyTorch's is as fast"
    if transposed and kernel == stride and channels_last:
        return "kernel and stride are equal and the layout channels_last: PyTorch's product needs no rearranging"
    return _shared(plan, input.dtype, plan.output_shape[1])


def weight_gradient_slower(large: Tensor, small: Tensor, plan: Plan, winograd: bool) -> str | None:
    """Why PyTorch's weight gradient is preferred for the convolution from `large` to `small`, or None."""
    channels_last = memory_format(large, small) != torch.contiguous_format
    channels = large.shape[1] // plan.geometry[-2]
    if large.dtype == torch.bfloat16 and rounds_natively() and not plan.is_matrix:
        return "bfloat16 on a processor that multiplies it: PyTorch's weight gradient does so, ours computes in float32"
    wins = (
        winograd
        or plan.is_matrix
        or large.dtype == torch.bfloat16
        or (channels >= WIDE_CHANNELS and (channels_last or small[:, 0].numel() <= FEW_PIXELS))
        or (channels == 1 and not channels_last and not has_wide_vectors())
    )
    if not wins:
        return "no Winograd windows to save products: PyTorch's weight gradient is as fast"
    return _shared(plan, large.dtype, small.shape[1])
