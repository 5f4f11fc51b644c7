"""The native kernels of csrc/cpu/reparameterize.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32
from aigc_fast.runtime.memory import on_huge_pages


def unsupported(tensor: Tensor, *others: Tensor) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cpu(tensor, tensor.dtype, UP_TO_FLOAT32)


def _sample(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    run = native.cpu.kernels.reparameterize
    if run(z, kl, mu, logvar, key):
        return
    out = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    run(out, kl, mu.contiguous(), logvar.contiguous(), None if key is None else key.contiguous())
    if z is not None:
        z.copy_(out)


def reparameterize(mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * noise from the key; see `reference.reparameterize`."""
    z = on_huge_pages(torch.empty_like(mu))
    _sample(z, None, mu, logvar, key)
    return z


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """The divergence from N(0, I) per row; see `reference.kl_standard_normal`."""
    kl = mu.new_empty(mu.shape[0])
    _sample(None, kl, mu, logvar, None)
    return kl


def reparameterize_kl(mu: Tensor, logvar: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """z and the divergence per row in one pass; see `reference.reparameterize_kl`."""
    z, kl = on_huge_pages(torch.empty_like(mu)), mu.new_empty(mu.shape[0])
    _sample(z, kl, mu, logvar, key)
    return z, kl


def _differentiate(
    grads: tuple[Tensor | None, Tensor],
    grad_z: Tensor,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    key: Tensor,
) -> None:
    run = native.cpu.kernels.reparameterize_backward
    if run(*grads, grad_z, grad_kl, mu, logvar, key):
        return
    outs = [None if grad is None else torch.empty_like(grad, memory_format=torch.contiguous_format) for grad in grads]
    mu = None if mu is None else mu.contiguous()
    run(*outs, grad_z.contiguous(), grad_kl, mu, logvar.contiguous(), key.contiguous())
    for grad, out in zip(grads, outs, strict=True):
        if grad is not None:
            grad.copy_(out)


def reparameterize_backward(grad: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """The gradient of logvar, with the noise made again from the key."""
    grad_logvar = torch.empty_like(logvar)
    _differentiate((None, grad_logvar), grad, None, None, logvar, key)
    return grad_logvar


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of mu and logvar, with the noise made again from the key."""
    grads = on_huge_pages(torch.empty_like(mu)), on_huge_pages(torch.empty_like(logvar))
    _differentiate(grads, grad_z, grad_kl, mu, logvar, key)
    return grads
