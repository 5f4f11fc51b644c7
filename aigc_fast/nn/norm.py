"""Norm layers on aigc_fast's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.nn.drop_in import drop_in
from aigc_fast.runtime.activations import Activation


def normalized_groups(module: torch.nn.GroupNorm, input: Tensor, activation: Activation = None) -> Tensor:
    """What the module and the activation make of the input."""
    return functional.group_norm(input, module.num_groups, module.weight, module.bias, module.eps, activation)


def normalized_rows(module: torch.nn.LayerNorm, input: Tensor, activation: Activation = None) -> Tensor:
    """What the module and the activation make of the input."""
    return functional.layer_norm(input, module.normalized_shape, module.weight, module.bias, module.eps, activation)


def normalized_channels(
    module: torch.nn.modules.instancenorm._InstanceNorm, input: Tensor, activation: Activation = None
) -> Tensor:
    """What the module and the activation make of the input, a batch."""
    return functional.instance_norm(
        input,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        module.training or not module.track_running_stats,
        0.0 if module.momentum is None else module.momentum,
        module.eps,
        activation,
    )


@drop_in
class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.group_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes each group of channels; input (N, C, ...)."""
        return normalized_groups(self, input)


@drop_in
class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.layer_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes the last dimensions; input (..., *normalized_shape)."""
        return normalized_rows(self, input)


@drop_in
class InstanceNorm1d(torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.instance_norm`; with running statistics it is PyTorch's own.
    """

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return normalized_channels(self, input)


@drop_in
class InstanceNorm2d(torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.instance_norm`; with running statistics it is PyTorch's own.
    """

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return normalized_channels(self, input)


@drop_in
class InstanceNorm3d(torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.instance_norm`; with running statistics it is PyTorch's own.
    """

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return normalized_channels(self, input)
