"""The native kernels of csrc/cpu/reparameterize.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast import _native
from aigc_fast.ops import support
from aigc_fast.ops.support import DTYPES, UP_TO_FLOAT32


def unsupported(tensor: Tensor, *others: Tensor) -> support.Reason:
    return support.cpu(tensor, tensor.dtype, UP_TO_FLOAT32)


def _run(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    rows, n = (1, mu.numel()) if kl is None else (kl.numel(), mu.numel())
    if n == 0:
        if kl is not None:
            kl.zero_()
        return
    dense = z if z is None or z.is_contiguous() else torch.empty(z.shape, dtype=z.dtype)
    mu, logvar = mu.contiguous(), logvar.contiguous()
    _native.cpu.kernels.reparameterize(
        None if dense is None else dense.data_ptr(),
        None if kl is None else kl.data_ptr(),
        mu.data_ptr(),
        logvar.data_ptr(),
        rows,
        n // rows,
        DTYPES[mu.dtype],
        None if key is None else key.contiguous().data_ptr(),
    )
    if dense is not z:
        z.copy_(dense)


def reparameterize(mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    z = torch.empty_like(mu)
    _run(z, None, mu, logvar, key)
    return z


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    kl = mu.new_empty(mu.shape[:1])
    _run(None, kl, mu, logvar, None)
    return kl


def reparameterize_kl(mu: Tensor, logvar: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    z, kl = torch.empty_like(mu), mu.new_empty(mu.shape[:1])
    _run(z, kl, mu, logvar, key)
    return z, kl


def reparameterize_backward(grad: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    grad_logvar = torch.empty(logvar.shape, dtype=logvar.dtype)
    grad, logvar, key = grad.contiguous(), logvar.contiguous(), key.contiguous()
    n = logvar.numel()
    _native.cpu.kernels.reparameterize_backward(
        None,
        grad_logvar.data_ptr(),
        grad.data_ptr(),
        None,
        0,
        None,
        logvar.data_ptr(),
        n,
        n,
        DTYPES[logvar.dtype],
        key.data_ptr(),
    )
    return grad_logvar


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    grad_mu, grad_logvar = torch.empty(mu.shape, dtype=mu.dtype), torch.empty(mu.shape, dtype=mu.dtype)
    n = mu.numel()
    if n == 0:
        return grad_mu, grad_logvar
    grad_z, mu, logvar, key = grad_z.contiguous(), mu.contiguous(), logvar.contiguous(), key.contiguous()
    _native.cpu.kernels.reparameterize_backward(
        grad_mu.data_ptr(),
        grad_logvar.data_ptr(),
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
    return grad_mu, grad_logvar
