"""Where PyTorch's own norm is as fast or faster: what automatic choice leaves to it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import is_channels_last
from aigc_fast.ops.norm.limits import (
    ACTIVATED_CHANNELS_ELSEWHERE,
    CHANNEL_TRAINED_NUMEL,
    FEW_PIXELS_ELSEWHERE,
    GROUP_NUMEL,
    GROUP_TRAINED_NUMEL,
    LARGE_IMAGE,
    MANY_CHANNELS,
    PLAIN_NUMEL_ELSEWHERE,
    ROW_LENGTH,
    ROWS_NUMEL,
    TRAINED_NUMEL_ELSEWHERE,
    TRAINED_PIXELS_ELSEWHERE,
    VECTOR_ELSEWHERE,
)
from aigc_fast.runtime import tuning
from aigc_fast.runtime.machine import is_intels
from aigc_fast.runtime.native import has_wide_vectors

_SMALL = "small: PyTorch's call costs less"


def is_light(input: Tensor) -> bool:
    """Whether PyTorch's call of a norm of groups costs less than ours; the public function asks this first."""
    return input.numel() < GROUP_NUMEL


def is_pytorchs_at_once(input: Tensor, groups: int, activation: str) -> bool:
    """Whether a norm of groups is PyTorch's in any case: of 50 norms in a U-Net a second look at each is 1 % of it."""
    if is_light(input):
        return True
    if tuning.knows("group_norm") or input.dim() < 2 or type(groups) is not int or not 0 < groups < input.shape[1]:
        return False
    gradients = torch.is_grad_enabled()
    if not _is_measured_elsewhere():
        return not gradients and input.dtype is torch.float32 and activation == "none"
    if gradients and not _is_as_fast_elsewhere(input, groups, activation, True):
        return False
    return (gradients and input.requires_grad) or _is_as_fast_elsewhere(input, groups, activation, False)


def is_light_for_rows(input: Tensor) -> bool:
    """The same of a norm of rows; in float32 PyTorch's is as fast whatever the size, unless something was measured."""
    return input.numel() < ROWS_NUMEL or (input.dtype == torch.float32 and not tuning.knows("layer_norm"))


def _is_pytorchs_own(input: Tensor, groups: int, activation: str) -> bool:
    """Whether PyTorch has a kernel that does all there is to do, in float32 or on planes."""
    known = input.dtype == torch.float32 or not is_channels_last(input)
    return activation == "none" and groups < input.shape[1] and known


def _is_measured_elsewhere() -> bool:
    """Whether what was measured on other makers' processors than Intel's says all there is to say."""
    return has_wide_vectors() and not is_intels()


def _is_as_fast_elsewhere(input: Tensor, groups: int, activation: str, gradients: bool) -> bool:
    """Whether PyTorch's norm of groups is as fast there, of several channels each, or with all its gradients."""
    in_floats, plain, per_group = input.dtype == torch.float32, activation == "none", input.shape[1] // groups
    if is_channels_last(input):
        if in_floats:
            return plain or per_group >= ACTIVATED_CHANNELS_ELSEWHERE[gradients]
        return (plain or gradients) and per_group % VECTOR_ELSEWHERE == 0
    if not gradients:
        return plain and (in_floats or input.numel() < PLAIN_NUMEL_ELSEWHERE)
    if plain or input.numel() < GROUP_TRAINED_NUMEL:
        return True
    if in_floats:
        return input.numel() < TRAINED_NUMEL_ELSEWHERE
    return prod(input.shape[2:]) < TRAINED_PIXELS_ELSEWHERE


def group_slower(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, slope: float
) -> str | None:
    """Why PyTorch's forward of a norm of groups is preferred, or None."""
    if is_light(input):
        return _SMALL
    if groups < input.shape[1] and _is_measured_elsewhere():
        as_fast = _is_as_fast_elsewhere(input, groups, activation, gradients=False)
    else:
        as_fast = _is_pytorchs_own(input, groups, activation)
    return "PyTorch's norm of such groups is as fast" if as_fast else None


def leave_groups(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, slope: float
) -> str | None:
    """Why PyTorch had better have a norm of groups with all its gradients, or None."""
    single = groups == input.shape[1]
    if _is_measured_elsewhere():
        if not single:
            as_fast = _is_as_fast_elsewhere(input, groups, activation, gradients=True)
            return "PyTorch's gradients of such groups are as fast" if as_fast else None
        if prod(input.shape[2:]) <= FEW_PIXELS_ELSEWHERE[input.dtype != torch.float32]:
            return "few pixels: PyTorch's gradients of a batch norm are as fast"
    least = CHANNEL_TRAINED_NUMEL if single else GROUP_TRAINED_NUMEL
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
