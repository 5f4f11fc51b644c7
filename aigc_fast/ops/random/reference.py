"""Random numbers as a pure function of a key, in plain PyTorch.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the
transform of Box and Muller (1958). The kernels compute the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = 10) -> list[Tensor]:
    """One block of four random words per counter.

    Args:
        counter: four int64 tensors that hold 32-bit words.
        key: two int64 tensors that hold 32-bit words; broadcast against the counters.
        rounds: 10 in the published generator.

    Returns:
        Four int64 tensors that hold 32-bit words.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2**64, which keeps all of their 64 bits.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _LOW) ^ c1 ^ key0,
            product1 & _LOW,
            (product0 >> 32 & _LOW) ^ c3 ^ key1,
            product0 & _LOW,
        )
        key0, key1 = key0 + _WEYL[0] & _LOW, key1 + _WEYL[1] & _LOW
    return [c0, c1, c2, c3]


def words(n: int, key: Tensor, stream: int = 0) -> Tensor:
    """The random words of elements 0 to n - 1, rounded up to whole blocks: int64, shape (ceil(n / 4), 4).

    Element i is word i % 4 of the block with counter (offset + i // 4, stream) under the key `seed`.

    Args:
        n: number of elements.
        key: int64, shape (2,): seed and offset.
        stream: an independent set of words for the same key.
    """
    seed, offset = key[0], key[1]
    position = offset + torch.arange((n + 3) // 4, device=key.device)
    zero = torch.zeros_like(position)
    counter = position & _LOW, position >> 32 & _LOW, zero + stream, zero
    return torch.stack(philox4x32(counter, (seed & _LOW, seed >> 32 & _LOW)), dim=-1)


def _shaped(values: Tensor, size: Sequence[int]) -> Tensor:
    return values.flatten()[: math.prod(size)].reshape(size)


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the numbers are computed in before they are rounded to `dtype`."""
    return dtype if dtype.is_complex or dtype == torch.float64 else torch.float32


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


def beside(numbers: Tensor, tensor: Tensor) -> Tensor:
    """The numbers, replicated over the mesh where `tensor` is a DTensor: the same key gives the same on every rank."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return numbers
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(numbers, mesh, [Replicate()] * mesh.ndim, run_check=False)


def dropout(input: Tensor, key: Tensor, p: float) -> Tensor:
    """Keeps each element with probability 1 - p, scaled by 1 / (1 - p); the others are multiplied by 0."""
    keep = _shaped(words(input.numel(), key), input.shape) < keep_below(p)
    compute = input.dtype if input.is_complex() else computing_dtype(input.dtype)
    return (input.to(compute) * beside(keep.to(compute) * keep_scale(p), input)).to(input.dtype)


def keep_below(p: float) -> int:
    """An element is kept when its word is below this."""
    return min(int((1.0 - p) * 2**32 + 0.5), _LOW)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0
