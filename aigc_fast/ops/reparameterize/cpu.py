"""The native kernels of csrc/cpu/reparameterize.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast import _native
from aigc_fast.ops import support
from aigc_fast.ops.support import DTYPES, UP_TO_FLOAT32, on_huge_pages


def unsupported(tensor: Tensor, *others: Tensor) -> support.Reason:
    """Why this backend cannot take these arguments, or None."""
    return support.cpu(tensor, tensor.dtype, UP_TO_FLOAT32)


def _empty_rows(mu: Tensor) -> Tensor:
    return torch.empty(mu.shape[0], dtype=mu.dtype, device=mu.device)


def _dense(tensor: Tensor) -> Tensor:
    """`tensor` if the kernel can write into it, else a contiguous stand-in."""
    return tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _run(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    rows, n = (1, mu.numel()) if kl is None else (kl.numel(), mu.numel())
    if n == 0:
        if kl is not None:
            kl.zero_()
        return
    out = None if z is None else _dense(z)
    mu, logvar = mu.contiguous(), logvar.contiguous()
    _native.cpu.kernels.reparameterize(
        None if out is None else out.data_ptr(),
        None if kl is None else kl.data_ptr(),
        mu.data_ptr(),
        logvar.data_ptr(),
        rows,
        n // rows,
        DTYPES[mu.dtype],
        None if key is None else key.contiguous().data_ptr(),
    )
    if out is not z:
        z.copy_(out)


def reparameterize(mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * noise from the key; see `reference.reparameterize`."""
    z = on_huge_pages(torch.empty_like(mu))
    _run(z, None, mu, logvar, key)
    return z


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """The divergence from N(0, I) per row; see `reference.kl_standard_normal`."""
    kl = _empty_rows(mu)
    _run(None, kl, mu, logvar, None)
    return kl


def reparameterize_kl(mu: Tensor, logvar: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """z and the divergence per row in one pass; see `reference.reparameterize_kl`."""
    z, kl = on_huge_pages(torch.empty_like(mu)), _empty_rows(mu)
    _run(z, kl, mu, logvar, key)
    return z, kl


def reparameterize_backward(grad: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """The gradient of logvar, with the noise made again from the key."""
    grad_logvar, n = torch.empty_like(logvar), logvar.numel()
    out = _dense(grad_logvar)
    grad, logvar, key = grad.contiguous(), logvar.contiguous(), key.contiguous()
    addresses = None, out.data_ptr(), grad.data_ptr(), None, 0, None, logvar.data_ptr()
    _native.cpu.kernels.reparameterize_backward(*addresses, n, n, DTYPES[logvar.dtype], key.data_ptr())
    return grad_logvar if out is grad_logvar else grad_logvar.copy_(out)


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of mu and logvar, with the noise made again from the key."""
    grads = tuple(on_huge_pages(torch.empty_like(tensor)) for tensor in (mu, logvar))
    n = mu.numel()
    if n == 0:
        return grads
    outs = _dense(grads[0]), _dense(grads[1])
    grad_z, mu, logvar, key = grad_z.contiguous(), mu.contiguous(), logvar.contiguous(), key.contiguous()
    _native.cpu.kernels.reparameterize_backward(
        outs[0].data_ptr(),
        outs[1].data_ptr(),
        grad_z.data_ptr(),
        grad_kl.data_ptr(),
        grad_kl.stride(0),
        mu.data_ptr(),
        logvar.data_ptr(),
        n,
        n // mu.shape[0],
        DTYPES[mu.dtype],
        key.data_ptr(),
    )
    for grad, out in zip(grads, outs, strict=True):
        if grad is not out:
            grad.copy_(out)
    return grads
