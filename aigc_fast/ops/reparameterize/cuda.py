"""The native kernels of csrc/cuda/reparameterize.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, current_stream
from aigc_fast.runtime.dtypes import DTYPES


def unsupported(tensor: Tensor, *others: Tensor) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cuda(tensor, tensor.dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    n = mu.numel()
    if n == 0:
        if kl is not None:
            kl.zero_()
        return
    rows = 1 if kl is None else kl.numel()
    dense = z if z is None or z.is_contiguous() else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    mu, logvar, key = mu.contiguous(), logvar.contiguous(), None if key is None else key.contiguous()
    with torch.cuda.device(mu.device):
        doubles = native.cuda.reparameterize_workspace(rows, n // rows) if kl is not None else 0
        workspace = torch.empty(doubles, dtype=torch.float64, device=mu.device) if doubles else None
        native.cuda.reparameterize(
            _address(dense),
            _address(kl),
            mu.data_ptr(),
            logvar.data_ptr(),
            rows,
            n // rows,
            DTYPES[mu.dtype],
            _address(key),
            _address(workspace),
            current_stream(mu),
        )
    if dense is not z:
        z.copy_(dense)


def reparameterize(mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * noise from the key; see `reference.reparameterize`."""
    z = torch.empty_like(mu)
    _run(z, None, mu, logvar, key)
    return z


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """The divergence from N(0, I) per row; see `reference.kl_standard_normal`."""
    kl = mu.new_empty(mu.shape[:1])
    _run(None, kl, mu, logvar, None)
    return kl


def reparameterize_kl(mu: Tensor, logvar: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """z and the divergence per row in one pass; see `reference.reparameterize_kl`."""
    z, kl = torch.empty_like(mu), mu.new_empty(mu.shape[:1])
    _run(z, kl, mu, logvar, key)
    return z, kl


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
    grad_z, logvar, key = grad_z.contiguous(), logvar.contiguous(), key.contiguous()
    mu = None if mu is None else mu.contiguous()
    with torch.cuda.device(logvar.device):
        native.cuda.reparameterize_backward(
            _address(grad_mu),
            grad_logvar.data_ptr(),
            grad_z.data_ptr(),
            _address(grad_kl),
            0 if grad_kl is None else grad_kl.stride(0),
            _address(mu),
            logvar.data_ptr(),
            n,
            n if grad_kl is None else n // grad_kl.numel(),
            DTYPES[logvar.dtype],
            key.data_ptr(),
            current_stream(logvar),
        )


def reparameterize_backward(grad: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """The gradient of logvar, with the noise made again from the key."""
    grad_logvar = torch.empty(logvar.shape, dtype=logvar.dtype, device=logvar.device)
    _run_backward(None, grad_logvar, grad, None, None, logvar, key)
    return grad_logvar


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of mu and logvar, with the noise made again from the key."""
    grad_mu, grad_logvar = (torch.empty(mu.shape, dtype=mu.dtype, device=mu.device) for _ in range(2))
    _run_backward(grad_mu, grad_logvar, grad_z, grad_kl, mu, logvar, key)
    return grad_mu, grad_logvar
