"""Uniform and standard normal numbers, and dropout, as Triton kernels: the reference's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_fast.ops.random.reference import keep_below, keep_scale, largest_uniform
from aigc_fast.runtime.memory import fill_densely

BLOCK = 1024


@triton.jit
def four_words(key, groups):
    """The four random words of each group of four elements."""
    seed = tl.load(key)
    counter = tl.load(key + 1) + groups
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def in_order(a, b, c, d):
    """Four words of each group, brought into the elements' order."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def box_muller(radius_word, angle_word):
    """Two words to two standard normals; the angle's quadrant comes from the word's bits."""
    uniform = (radius_word >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    turned = angle_word + 0x20000000
    rest = (turned & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    angle = rest.to(tl.float32) * 1.4629180792671597e-9
    sine, cosine = tl.sin(angle), tl.cos(angle)
    odd = (turned >> 30 & 1) == 1
    sign = tl.where(turned >> 31 == 1, -1.0, 1.0)
    first = tl.where(odd, -sine, cosine)
    second = tl.where(odd, cosine, sine)
    return first * (radius * sign), second * (radius * sign)


@triton.jit
def normals(key, groups):
    """Four standard normals of each group, in the elements' order."""
    w0, w1, w2, w3 = four_words(key, groups)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return in_order(n0, n1, n2, n3)


@triton.jit
def _normal(out, n, key, SIZE: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    tl.store(out + at, normals(key, first // 4 + tl.arange(0, SIZE // 4)), mask=at < n)


@triton.jit
def _uniform(out, n, key, largest, SIZE: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    w0, w1, w2, w3 = four_words(key, first // 4 + tl.arange(0, SIZE // 4))
    words = in_order(w0, w1, w2, w3)
    values = (words >> 8).to(tl.int32).to(tl.float32) * 5.960464477539063e-08
    tl.store(out + at, tl.minimum(values, largest), mask=at < n)


@triton.jit
def _dropout(out, input, n, key, below, scale, SIZE: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    w0, w1, w2, w3 = four_words(key, first // 4 + tl.arange(0, SIZE // 4))
    kept = in_order(w0, w1, w2, w3).to(tl.int64) < below
    values = tl.load(input + at, mask=at < n).to(tl.float32)
    tl.store(out + at, values * tl.where(kept, scale, 0.0), mask=at < n)


def _grid(n: int) -> tuple[int]:
    return (triton.cdiv(n, BLOCK),)


def normal(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Standard normals of `size` from the key; see `reference.normal`."""
    if n := out.numel():
        _normal[_grid(n)](out, n, key.contiguous(), SIZE=BLOCK)
    return True


def uniform(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Uniforms in [0, 1) of `size` from the key; see `reference.uniform`."""
    if n := out.numel():
        _uniform[_grid(n)](out, n, key.contiguous(), largest_uniform(dtype), SIZE=BLOCK)
    return True


def _drop(out: Tensor, input: Tensor, key: Tensor, p: float) -> None:
    if n := input.numel():
        _dropout[_grid(n)](out, input, n, key, keep_below(p), keep_scale(p), SIZE=BLOCK)


def dropout(out: Tensor, input: Tensor, key: Tensor, p: float) -> bool:
    """`input` with elements dropped by the key's mask, the rest scaled; see `reference.dropout`."""
    return fill_densely(_drop, (out,), input, key, p)
