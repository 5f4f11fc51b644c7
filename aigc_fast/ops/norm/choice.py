"""Where PyTorch's own norm is as fast or faster: what automatic choice leaves to it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import is_channels_last
from aigc_fast.ops.norm.limits import (
    CHANNEL_TRAINED_NUMEL,
    GROUP_NUMEL,
    GROUP_TRAINED_NUMEL,
    LARGE_IMAGE,
    MANY_CHANNELS,
    ROW_LENGTH,
    ROWS_NUMEL,
)
from aigc_fast.runtime import tuning

_SMALL = "small: PyTorch's call costs less"


def is_light(input: Tensor) -> bool:
    """Whether PyTorch's call of a norm of groups costs less than ours; the public function asks this first."""
    return input.numel() < GROUP_NUMEL


def is_pytorchs_at_once(input: Tensor, groups: int, activation: str) -> bool:
    """Whether a norm of groups is PyTorch's in any case: of 50 norms in a U-Net a second look at each is 1 % of it."""
    if is_light(input):
        return True
    known = input.dtype is torch.float32 and activation == "none" and not tuning.knows("group_norm")
    known = known and not torch.is_grad_enabled()
    return known and input.dim() > 1 and type(groups) is int and groups < input.shape[1]


def is_light_for_rows(input: Tensor) -> bool:
    """The same of a norm of rows; in float32 PyTorch's is as fast whatever the size, unless something was measured."""
    return input.numel() < ROWS_NUMEL or (input.dtype == torch.float32 and not tuning.knows("layer_norm"))


def _is_pytorchs_own(input: Tensor, groups: int, activation: str) -> bool:
    """Whether PyTorch has a kernel that does all there is to do, in float32 or on planes."""
    known = input.dtype == torch.float32 or not is_channels_last(input)
    return activation == "none" and groups < input.shape[1] and known


def group_slower(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, slope: float
) -> str | None:
    """Why PyTorch's forward of a norm of groups is preferred, or None."""
    if is_light(input):
        return _SMALL
    if _is_pytorchs_own(input, groups, activation):
        return "nothing follows: PyTorch's norm of groups is as fast"
    return None


def leave_groups(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, slope: float
) -> str | None:
    """Why PyTorch had better have a norm of groups with all its gradients, or None."""
    least = CHANNEL_TRAINED_NUMEL if groups == input.shape[1] else GROUP_TRAINED_NUMEL
    if input.numel() < least:
        return "small: PyTorch's call and its gradients cost less"
    large = input.shape[1] >= MANY_CHANNELS and input.numel() >= input.shape[0] * LARGE_IMAGE
    if large and input.dtype == torch.float32 and is_channels_last(input):
        return "a large image of many channels in channels_last: PyTorch's gradients are as fast"
    return None


def layer_slower(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_shape: Sequence[int],
    eps: float,
    activation: str,
    slope: float,
) -> str | None:
    """Why PyTorch's forward of a norm of rows is preferred, or None."""
    if input.dtype == torch.float32:
        return "rows of float32: PyTorch's norm is as fast, and what follows finds them in the caches"
    if prod(normalized_shape) < ROW_LENGTH or input.numel() < ROWS_NUMEL:
        return _SMALL
    return None


def leave_rows(*args: object) -> str | None:
    """Why PyTorch had better have a norm of rows with all its gradients, or None: what is ours forward is so back."""
    return None
