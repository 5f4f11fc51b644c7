"""Batch norm over a batch whose rows are in several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.runtime.ranks import Ranks


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradient is that of the mean of their losses by their weights."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.weight = ranks, ranks.weight
        return ranks.sum(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(grad * ctx.weight) / ctx.weight, None


def _forward(norm: nn.modules.batchnorm._BatchNorm, input: Tensor, ranks: Ranks) -> Tensor:
    """The layer in training, as on the whole batch."""
    norm._check_input_dim(input)
    others = [0, *range(2, input.dim())]
    computed = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    own = computed.new_tensor(input.numel() // input.shape[1])
    count = ranks.sum(own)
    mean = _Sum.apply(computed.sum(others), ranks) / count
    shape = 1, -1, *[1] * (input.dim() - 2)
    centred = computed - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(others), ranks) / count
    if norm.track_running_stats:
        _remember(norm, mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
    found = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        found = found * norm.weight.view(shape) + norm.bias.view(shape)
    return found.to(input.dtype)


@torch.no_grad()
def _remember(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    norm.num_batches_tracked += 1
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


@contextmanager
def over_ranks(modules: Iterable[nn.Module], ranks: Ranks) -> Iterator[None]:
    """In the block, batch norms that train take mean and variance of the whole batch, and their gradients.

    `torch.nn.SyncBatchNorm` does so on cards alone, and takes every process to have as many rows.

    Args:
        modules: whose layers, PyTorch's own, are meant.
        ranks: the processes.
    """
    found = [layer for module in modules for layer in module.modules() if type(layer) in _NORMS]
    changed = [layer for layer in found if "forward" not in vars(layer)] if ranks.count > 1 else []
    for layer in changed:
        layer.forward = _over_ranks(layer, ranks)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _over_ranks(layer: nn.modules.batchnorm._BatchNorm, ranks: Ranks) -> Any:
    def forward(input: Tensor) -> Tensor:
        return _forward(layer, input, ranks) if layer.training else type(layer).forward(layer, input)

    return forward
