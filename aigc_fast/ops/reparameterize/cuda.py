"""The native kernels of csrc/cuda/reparameterize.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES
from aigc_fast.runtime.memory import fill_densely


def unsupported(tensor: Tensor, *others: Tensor | None) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cuda(tensor.dtype, tensor, *others)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> None:
    n = mu.numel()
    if n == 0:
        if kl is not None:
            kl.zero_()
        return
    rows = 1 if kl is None else kl.numel()
    doubles = native.cuda.reparameterize_workspace(rows, n // rows) if kl is not None else 0
    workspace = torch.empty(doubles, dtype=torch.float64, device=mu.device) if doubles else None
    native.cuda.reparameterize(
        _address(z),
        _address(kl),
        mu.data_ptr(),
        logvar.data_ptr(),
        rows,
        n // rows,
        DTYPES[mu.dtype],
        _address(key),
        _address(workspace),
        *queue(mu),
    )


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
    native.cuda.reparameterize_backward(
        _address(grad_mu),
        grad_logvar.data_ptr(),
        grad_z.data_ptr(),
        _address(grad_kl),
        _address(mu),
        logvar.data_ptr(),
        rows,
        n // rows,
        DTYPES[logvar.dtype],
        key.data_ptr(),
        *queue(logvar),
    )


def sample(results: tuple[Tensor | None, Tensor | None], mu: Tensor, logvar: Tensor, key: Tensor | None) -> bool:
    """z and the divergence per row, or either of them, in one pass; see `reference.reparameterize_kl`."""
    return fill_densely(_run, results, mu, logvar, key)


def differentiate(grads: tuple[Tensor | None, Tensor], *inputs: Tensor | None) -> bool:
    """The gradients of mu, where it is given, and of logvar, with the noise made again from the key."""
    return fill_densely(_run_backward, grads, *inputs)
