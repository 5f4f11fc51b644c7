"""Weights as CUDA kernels read them: each output's in a row by themselves, in whole 16 bytes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.decode.spec import Linear

GROUP = 32
"""Numbers of the depth that share a scale in int4."""

# Rows are padded to a multiple of this many numbers.
_TOGETHER = {"fp32": 4, "bf16": 8, "int8": GROUP, "int4": GROUP}
# As core/compact.h has them: what is smaller is zero in int8; the steps that a group's farthest number may be.
_LEAST_SCALED = 1e-36
_STEPS = (-8.0, -8.5, -7.5, -7.0, 7.0, 7.5)
# How many numbers are rounded at a time.
_AT_ONCE = 1 << 24


class Packed(NamedTuple):
    """A matrix, as it is kept.

    Attributes:
        kept: "fp32", "bf16", "int8" or "int4".
        depth: numbers of a row.
        data: (outputs, padded depth) in float32, bfloat16 or, of int8, uint8 with 128 added; (outputs, padded depth /
            2) uint8 of int4: of every four bytes the lower halves are the first four numbers, with 8 added.
        scales: None; of int8 (outputs,) float32; of int4 (outputs, groups) float16.
        bias: (outputs,) float32 or None.
    """

    kept: str
    depth: int
    data: Tensor
    scales: Tensor | None
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Of weights and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of data, scales and bias, 0 for what is not there."""
        return tuple(0 if each is None else each.data_ptr() for each in (self.data, self.scales, self.bias))

    def linear(self) -> Linear:
        """What the kernels multiply by, in float32."""
        if self.kept == "int4":
            weight = (_numbers(self.data).unflatten(1, (-1, GROUP)) * self.scales.float()[:, :, None]).flatten(1)
        elif self.kept == "int8":
            weight = (self.data.float() - 128) * self.scales[:, None]
        else:
            weight = self.data.float()
        return Linear(weight[:, : self.depth], self.bias)


def pack(weight: Tensor, kept: str, bias: Tensor | None = None) -> Packed:
    """Rounds a matrix to what is kept of it.

    Args:
        weight: (outputs, depth), of a floating dtype.
        kept: "fp32", "bf16", "int8" or "int4".
        bias: (outputs,) float32 or None.
    """
    depth = weight.shape[1]
    outputs = max(1, _AT_ONCE // max(1, depth))
    parts = [_packed(TF.pad(part, (0, -depth % _TOGETHER[kept])), kept) for part in weight.split(outputs)]
    data, scales = (None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True))
    return Packed(kept, depth, data, scales, bias)


def _packed(weight: Tensor, kept: str) -> tuple[Tensor, Tensor | None]:
    if kept in ("fp32", "bf16"):
        return weight.to(torch.float32 if kept == "fp32" else torch.bfloat16), None
    return (_bytes if kept == "int8" else _nibbles)(weight.float())


def _bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    greatest = weight.abs().amax(1)
    inverse = torch.where(greatest > _LEAST_SCALED, 127 / greatest, 0.0)
    found = (weight * inverse[:, None]).round().clamp(-127, 127)
    return (found.nan_to_num(0) + 128).to(torch.uint8), greatest / 127


def _nibbles(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of several that leaves out the least, and of its steps the one that suits them best."""
    groups = weight.unflatten(1, (-1, GROUP))
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = least = better = None
    for tried in (*(farthest / steps for steps in _STEPS), None):
        scale = (better if tried is None else tried).half().float()
        steps = _steps(groups, scale)
        error = (groups - steps * scale).square().sum(-1, keepdim=True)
        fit = (steps * groups).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True)
        is_better = torch.ones_like(error, dtype=torch.bool) if least is None else error < least
        best = scale if best is None else torch.where(is_better, scale, best)
        better = fit if better is None else torch.where(is_better, fit, better)
        least = error if least is None else torch.where(is_better, error, least)
        better = better.nan_to_num(0)
    words = (_steps(groups, best) + 8).to(torch.uint8).unflatten(-1, (-1, 2, 4))
    return (words[..., 0, :] | words[..., 1, :] << 4).flatten(1), best.squeeze(-1).half()


def _steps(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups * torch.where(scale != 0, 1 / scale, 0.0)).round().clamp(-8, 7).nan_to_num(0)


def _numbers(data: Tensor) -> Tensor:
    words = data.unflatten(1, (-1, 4))
    return torch.stack([words & 15, words >> 4], 2).flatten(1).float() - 8
