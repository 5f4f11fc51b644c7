"""Random numbers as a pure function of a key, in plain PyTorch: Philox and the transform of Box and Muller (1958)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.ops.random.philox import LOW, beside, words
from aigc_fast.runtime.dtypes import computing_dtype


def _shaped(values: Tensor, size: Sequence[int]) -> Tensor:
    return values.flatten()[: math.prod(size)].reshape(size)


def uniform(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform on [0, 1): the upper 24 bits of each word; for float64, 53 bits, of which the first 32 are the word."""
    n = math.prod(size)
    word = words(n, key)
    if dtype == torch.float64:
        fine = (word << 21) | (words(n, key, stream=1) >> 11)
        return _shaped(fine.double() * 2.0**-53, size)
    return _shaped(((word >> 8).float() * 2.0**-24).clamp_max(largest_uniform(dtype)), size).to(dtype)


def largest_uniform(dtype: torch.dtype) -> float:
    """The greatest number below 1: rounding must not reach it."""
    return 1 - torch.finfo(dtype).eps / 2


def normal(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normal: each pair of words gives a radius and an angle, and those two numbers.

    The words are rounded to float32 for every dtype, so that float64 differs from it by the transform's rounding
    alone.
    """
    compute = computing_dtype(dtype)
    radius_word, angle_word = words(math.prod(size), key).unflatten(-1, (2, 2)).unbind(-1)
    uniform = (radius_word >> 1).float() * 2.0**-31 + 2.0**-32
    radius = (-2 * uniform.to(compute).log()).sqrt()
    # The angle's quadrant is exact; only the remaining eighth of a turn either way is rounded.
    quadrant = (angle_word + 2**29 >> 30) & 3
    rest = ((angle_word + 2**29) & (2**30 - 1)) - 2**29
    angle = rest.float().to(compute) * (2 * math.pi / 2**32)
    sine, cosine = angle.sin(), angle.cos()
    odd = (quadrant & 1).bool()
    first, second = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    sign = 1 - (quadrant & 2)
    pair = torch.stack([first, second], dim=-1) * (radius * sign).unsqueeze(-1)
    return _shaped(pair, size).to(dtype)


def dropout(input: Tensor, key: Tensor, p: float) -> Tensor:
    """Keeps each element with probability 1 - p, scaled by 1 / (1 - p); the others are multiplied by 0."""
    keep = _shaped(words(input.numel(), key), input.shape) < keep_below(p)
    compute = input.dtype if input.is_complex() else computing_dtype(input.dtype)
    return (input.to(compute) * beside(keep.to(compute) * keep_scale(p), input)).to(input.dtype)


def keep_below(p: float) -> int:
    """An element is kept when its word is below this."""
    return min(int((1.0 - p) * 2**32 + 0.5), LOW)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0
