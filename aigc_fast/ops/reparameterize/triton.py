"""Reparameterised sampling and the divergence as Triton kernels: one program per block of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_fast.ops.random.triton import normals
from aigc_fast.runtime.memory import fill_densely

_LARGEST_BLOCK = 1024


@triton.jit
def _elements(columns, SIZE: tl.constexpr):
    """This program's elements: those of its row within its block, whose first one is a multiple of four."""
    row = tl.program_id(0).to(tl.int64)
    first = row * columns // 4 * 4 + tl.program_id(1).to(tl.int64) * SIZE
    at = first + tl.arange(0, SIZE)
    return row, first, at, (at >= row * columns) & (at < (row + 1) * columns)


@triton.jit
def _forward(z, parts, mu, logvar, columns, key, SIZE: tl.constexpr, WITH_Z: tl.constexpr, WITH_KL: tl.constexpr):
    row, first, at, mine = _elements(columns, SIZE)
    m = tl.load(mu + at, mask=mine, other=0.0).to(tl.float32)
    l = tl.load(logvar + at, mask=mine, other=0.0).to(tl.float32)
    sigma = tl.exp(0.5 * l)
    if WITH_Z:
        tl.store(z + at, m + sigma * normals(key, first // 4 + tl.arange(0, SIZE // 4)), mask=mine)
    if WITH_KL:
        terms = tl.where(mine, m * m + ((sigma * sigma - 1.0) - l), 0.0)
        tl.store(parts + row * tl.num_programs(1) + tl.program_id(1), tl.sum(terms.to(tl.float64)))


@triton.jit
def _backward(
    grad_mu,
    grad_logvar,
    grad_z,
    grad_kl,
    kl_stride,
    mu,
    logvar,
    columns,
    key,
    SIZE: tl.constexpr,
    WITH_KL: tl.constexpr,
):
    row, first, at, mine = _elements(columns, SIZE)
    gz = tl.load(grad_z + at, mask=mine, other=0.0).to(tl.float32)
    sigma = tl.exp(0.5 * tl.load(logvar + at, mask=mine, other=0.0).to(tl.float32))
    to_logvar = gz * normals(key, first // 4 + tl.arange(0, SIZE // 4)) * sigma
    if WITH_KL:
        g = tl.load(grad_kl + row * kl_stride).to(tl.float32)
        to_logvar += (sigma * sigma - 1.0) * g
        tl.store(grad_mu + at, gz + tl.load(mu + at, mask=mine, other=0.0).to(tl.float32) * g, mask=mine)
    tl.store(grad_logvar + at, 0.5 * to_logvar, mask=mine)


def _blocks(rows: int, columns: int) -> tuple[tuple[int, int], int]:
    """The grid and the block size."""
    size = min(_LARGEST_BLOCK, triton.next_power_of_2(max(16, columns + 3)))
    return (rows, triton.cdiv(columns + 3, size)), size


def _run(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    n = mu.numel()
    if n == 0:
        if kl is not None:
            kl.zero_()
        return
    rows = 1 if kl is None else kl.numel()
    grid, size = _blocks(rows, n // rows)
    parts = None if kl is None else torch.empty(grid, dtype=torch.float64, device=mu.device)
    _forward[grid](z, parts, mu, logvar, n // rows, key, SIZE=size, WITH_Z=z is not None, WITH_KL=kl is not None)
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
    rows, stride = (1, 0) if grad_kl is None else (grad_kl.numel(), grad_kl.stride(0))
    grid, size = _blocks(rows, n // rows)
    outputs = grad_mu, grad_logvar, grad_z, grad_kl, stride
    _backward[grid](*outputs, mu, logvar, n // rows, key, SIZE=size, WITH_KL=grad_kl is not None)


def sample(results: tuple[Tensor | None, Tensor | None], mu: Tensor, logvar: Tensor, key: Tensor | None) -> bool:
    """z and the divergence per row, or either of them, in one pass; see `reference.reparameterize_kl`."""
    return fill_densely(_run, results, mu, logvar, key)


def differentiate(grads: tuple[Tensor | None, Tensor], *inputs: Tensor | None) -> bool:
    """The gradients of mu, where it is given, and of logvar, with the noise made again from the key."""
    return fill_densely(_run_backward, grads, *inputs)
