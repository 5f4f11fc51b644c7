"""Uniform and standard normal numbers, and dropout, as Triton kernels: the reference's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_fast.ops.random.reference import keep_below, keep_scale, largest_uniform
from aigc_fast.runtime.devices import current
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
def sine_cosine(x):
    """Of x in [-pi/4, pi/4]; the library's functions bring any angle there first, by a thousand instructions."""
    square = x * x
    s = (square * -1.9515295891e-4 + 8.3321608736e-3) * square - 1.6666654611e-1
    c = (square * 2.443315711809948e-5 - 1.388731625493765e-3) * square + 4.166664568298827e-2
    return s * (square * x) + x, c * (square * square) + (1.0 - square * 0.5)


@triton.jit
def box_muller(radius_word, angle_word):
    """Two words to two standard normals; the angle's quadrant comes from the word's bits."""
    uniform = (radius_word >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    turned = angle_word + 0x20000000
    rest = (turned & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    sine, cosine = sine_cosine(rest.to(tl.float32) * 1.4629180792671597e-9)
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
def load_part(input, at, mine, whole):
    """Elements in float32, zeros where they are not meant; without a mask, in wide accesses, where all of them are."""
    if whole:  # noqa: SIM108 - an expression would take both
        values = tl.load(input + at)
    else:
        values = tl.load(input + at, mask=mine, other=0.0)
    return values.to(tl.float32)


@triton.jit
def store_part(out, at, mine, whole, values):
    """Stores the elements that are meant; see `load_part`."""
    if whole:
        tl.store(out + at, values)
    else:
        tl.store(out + at, values, mask=mine)


@triton.jit
def _own(n, SIZE: tl.constexpr):
    """This program's first element, all of them, and whether they are within n: each, and all."""
    first = tl.program_id(0).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    return first, at, at < n, first + SIZE <= n


# Of sizes and probabilities no kind of number has a kernel of its own.
@triton.jit(do_not_specialize=["n"])
def _normal(out, n, key, SIZE: tl.constexpr):
    first, at, mine, whole = _own(n, SIZE)
    store_part(out, at, mine, whole, normals(key, first // 4 + tl.arange(0, SIZE // 4)))


@triton.jit(do_not_specialize=["n"])
def _uniform(out, n, key, largest, SIZE: tl.constexpr):
    first, at, mine, whole = _own(n, SIZE)
    w0, w1, w2, w3 = four_words(key, first // 4 + tl.arange(0, SIZE // 4))
    values = (in_order(w0, w1, w2, w3) >> 8).to(tl.int32).to(tl.float32) * 5.960464477539063e-08
    store_part(out, at, mine, whole, tl.minimum(values, largest))


@triton.jit(do_not_specialize=["n", "below"])
def _dropout(out, input, n, key, below, scale, SIZE: tl.constexpr):
    first, at, mine, whole = _own(n, SIZE)
    w0, w1, w2, w3 = four_words(key, first // 4 + tl.arange(0, SIZE // 4))
    kept = (in_order(w0, w1, w2, w3) ^ 0x80000000).to(tl.int32, bitcast=True) < below
    store_part(out, at, mine, whole, load_part(input, at, mine, whole) * tl.where(kept, scale, 0.0))


def _grid(n: int) -> tuple[int]:
    return (triton.cdiv(n, BLOCK),)


def _draw(kernel: Any, out: Tensor, key: Tensor, *rest: float) -> None:
    if n := out.numel():
        with current(out):
            kernel[_grid(n)](out, n, key, *rest, SIZE=BLOCK)


def normal(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Standard normals of `size` from the key; see `reference.normal`."""
    return fill_densely(partial(_draw, _normal), (out,), key)


def uniform(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Uniforms in [0, 1) of `size` from the key; see `reference.uniform`."""
    return fill_densely(partial(_draw, _uniform), (out,), key, largest_uniform(dtype))


def _drop(out: Tensor, input: Tensor, key: Tensor, p: float) -> None:
    if n := input.numel():
        with current(out):
            # A signed 32-bit number, whatever p is.
            below = keep_below(p) - 2**31
            _dropout[_grid(n)](out, input, n, key, below, keep_scale(p), SIZE=BLOCK)


def dropout(out: Tensor, input: Tensor, key: Tensor, p: float) -> bool:
    """`input` with elements dropped by the key's mask, the rest scaled; see `reference.dropout`."""
    return fill_densely(_drop, (out,), input, key, p)
