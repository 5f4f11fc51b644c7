"""Reparameterised sampling in plain PyTorch (Kingma and Welling, "Auto-encoding variational Bayes", 2013)."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.random.philox import beside
from aigc_fast.ops.random.reference import normal
from aigc_fast.runtime.dtypes import computing_dtype


def _noise_times_sigma(logvar: Tensor, key: Tensor) -> Tensor:
    compute = computing_dtype(logvar.dtype)
    return beside(normal(logvar.shape, key, compute), logvar) * (0.5 * logvar.to(compute)).exp()


def reparameterize(mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * noise."""
    return (mu.to(computing_dtype(mu.dtype)) + _noise_times_sigma(logvar, key)).to(mu.dtype)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) = sum((mu^2 + exp(logvar) - 1 - logvar) / 2), summed within each row."""
    compute = computing_dtype(mu.dtype)
    m, l = mu.to(compute), logvar.to(compute)
    terms = m.square() + (l.exp() - 1 - l)
    return (0.5 * terms.unsqueeze(-1).flatten(1).sum(1)).to(mu.dtype)


def reparameterize_kl(mu: Tensor, logvar: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The sample and the divergence."""
    return reparameterize(mu, logvar, key), kl_standard_normal(mu, logvar)


def reparameterize_backward(grad: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """The gradient to logvar from the gradient to the sample."""
    return (0.5 * grad.to(computing_dtype(grad.dtype)) * _noise_times_sigma(logvar, key)).to(logvar.dtype)


def per_row(grad_kl: Tensor, like: Tensor) -> Tensor:
    """A gradient to the divergences, shaped to be multiplied with the tensor that they came from."""
    return grad_kl.reshape([-1] + [1] * (like.dim() - 1))


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients to mu and logvar from those to the sample and the divergence."""
    compute = computing_dtype(mu.dtype)
    gz, gkl, m, l = (t.to(compute) for t in (grad_z, per_row(grad_kl, mu), mu, logvar))
    grad_logvar = 0.5 * (gz * _noise_times_sigma(logvar, key) + gkl * torch.expm1(l))
    return (gz + gkl * m).to(mu.dtype), grad_logvar.to(logvar.dtype)
