"""Reparameterised sampling and the divergence as Triton kernels: one program per block of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_fast.ops.random.triton import load_part, normals, store_part
from aigc_fast.runtime.devices import current
from aigc_fast.runtime.memory import fill_densely

_LARGEST_BLOCK = 1024
_MOST_PROGRAMS = 2**31 - 1  # on a grid's first axis


@triton.jit
def _elements(rows, columns, blocks, SIZE: tl.constexpr):
    """This program's place in the grid, row, first element and all of them: whether each, and all, are its row's.

    The first is a multiple of eight: whole groups of random numbers, and 16 bytes of 16-bit elements.
    """
    unit = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    row = unit // blocks
    begin, end = row * columns, tl.where(row < rows, (row + 1) * columns, 0)
    first = tl.multiple_of(begin // 8 * 8 + unit % blocks * SIZE, 8)
    at = first + tl.arange(0, SIZE)
    return unit, row, first, at, (at >= begin) & (at < end), (first >= begin) & (first + SIZE <= end)


@triton.jit(do_not_specialize=["rows", "columns", "blocks"])
def _forward(
    z,
    parts,
    mu,
    logvar,
    rows,
    columns,
    blocks,
    key,
    SIZE: tl.constexpr,
    WITH_Z: tl.constexpr,
    WITH_KL: tl.constexpr,
):
    unit, row, first, at, mine, whole = _elements(rows, columns, blocks, SIZE)
    m = load_part(mu, at, mine, whole)
    l = load_part(logvar, at, mine, whole)
    sigma = tl.exp(0.5 * l)
    if WITH_Z:
        store_part(z, at, mine, whole, m + sigma * normals(key, first // 4 + tl.arange(0, SIZE // 4)))
    if WITH_KL:
        terms = tl.where(mine, m * m + ((sigma * sigma - 1.0) - l), 0.0)
        tl.store(parts + unit, tl.sum(terms.to(tl.float64)), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "columns", "blocks"])
def _backward(
    grad_mu,
    grad_logvar,
    grad_z,
    grad_kl,
    mu,
    logvar,
    rows,
    columns,
    blocks,
    key,
    SIZE: tl.constexpr,
    WITH_KL: tl.constexpr,
):
    _, row, first, at, mine, whole = _elements(rows, columns, blocks, SIZE)
    gz = load_part(grad_z, at, mine, whole)
    sigma = tl.exp(0.5 * load_part(logvar, at, mine, whole))
    to_logvar = gz * normals(key, first // 4 + tl.arange(0, SIZE // 4)) * sigma
    if WITH_KL:
        g = tl.load(grad_kl + row, mask=row < rows, other=0.0).to(tl.float32)
        to_logvar += (sigma * sigma - 1.0) * g
        store_part(grad_mu, at, mine, whole, gz + load_part(mu, at, mine, whole) * g)
    store_part(grad_logvar, at, mine, whole, 0.5 * to_logvar)


def _blocks(rows: int, columns: int) -> tuple[tuple[int, int], int, int]:
    """The grid, the blocks of each row and their size; a row that begins within a group ends within one more."""
    reach = columns + 7 if columns % 8 and rows > 1 else columns
    size = min(_LARGEST_BLOCK, triton.next_power_of_2(max(16, reach)))
    blocks = triton.cdiv(reach, size)
    on_first_axis = min(rows * blocks, _MOST_PROGRAMS)
    return (on_first_axis, triton.cdiv(rows * blocks, on_first_axis)), blocks, size


def _run(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    n = mu.numel()
    if n == 0:
        if kl is not None:
            kl.zero_()
        return
    rows = 1 if kl is None else kl.numel()
    grid, blocks, size = _blocks(rows, n // rows)
    parts = None if kl is None else torch.empty(rows, blocks, dtype=torch.float64, device=mu.device)
    sizes = rows, n // rows, blocks
    with current(mu):
        _forward[grid](z, parts, mu, logvar, *sizes, key, SIZE=size, WITH_Z=z is not None, WITH_KL=kl is not None)
    if kl is not None:
        kl.copy_(0.5 * parts.sum(1))


def _run_backward(
    grad_mu: Tensor | None,
    grad_logvar: Tensor,
    grad_z: Tensor,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    key: Tensor,
) -> None:
    n = logvar.numel()
    if n == 0:
        return
    rows = 1 if grad_kl is None else grad_kl.numel()
    grid, blocks, size = _blocks(rows, n // rows)
    tensors = grad_mu, grad_logvar, grad_z, grad_kl, mu, logvar
    with current(logvar):
        _backward[grid](*tensors, rows, n // rows, blocks, key, SIZE=size, WITH_KL=grad_kl is not None)


def sample(results: tuple[Tensor | None, Tensor | None], mu: Tensor, logvar: Tensor, key: Tensor | None) -> bool:
    """z and the divergence per row, or either of them, in one pass; see `reference.reparameterize_kl`."""
    return fill_densely(_run, results, mu, logvar, key)


def differentiate(grads: tuple[Tensor | None, Tensor], *inputs: Tensor | None) -> bool:
    """The gradients of mu, where it is given, and of logvar, with the noise made again from the key."""
    return fill_densely(_run_backward, grads, *inputs)
