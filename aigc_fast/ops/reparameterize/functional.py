"""The public functions: checks and autocast, over the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.random.cpu import passing_key
from aigc_fast.ops.random.operators import draw_key
from aigc_fast.ops.reparameterize import cpu, reference
from aigc_fast.ops.reparameterize.operators import KL_STANDARD_NORMAL, REPARAMETERIZE, REPARAMETERIZE_KL
from aigc_fast.runtime import rows
from aigc_fast.runtime.arguments import check_types
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.operator import Operator, is_plain
from aigc_fast.runtime.recording import is_for_onnx, is_symbolic, record


def _checked(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    check_types(mu=mu, logvar=logvar)
    if not mu.is_floating_point():
        raise RuntimeError(f"mu has dtype {mu.dtype}: expected a floating-point type")
    if mu.shape != logvar.shape:
        raise RuntimeError(f"logvar has shape {tuple(logvar.shape)}: expected mu's {tuple(mu.shape)}")
    if mu.device != logvar.device:
        raise RuntimeError(f"logvar is on {logvar.device}: expected mu's device {mu.device}")
    if has_autocast(mu) and mu.dtype != torch.float64 and logvar.is_floating_point():
        return mu.float(), logvar.float()
    if mu.dtype != logvar.dtype:
        raise RuntimeError(f"logvar has dtype {logvar.dtype}: expected mu's {mu.dtype}")
    return mu, logvar


def _sampled(op: Operator, mu: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Any:
    if is_for_onnx() and generator is None:
        noise = torch.randn_like(mu)
        z = mu + noise * (0.5 * logvar).exp()
        return z if op is REPARAMETERIZE else (z, reference.kl_standard_normal(mu, logvar))
    if rows.layouts and generator is None:
        return rows.drawn(lambda key, mu, logvar: op(mu, logvar, key), draw_key(mu), mu, logvar)
    # Small samples take less time than the op's call, and nothing needs the key of these again.
    if generator is None and not mu.requires_grad and is_plain(mu, logvar) and cpu.unsupported(mu) is None:
        return op.runs["cpu"](mu, logvar, passing_key())
    return op(mu, logvar, draw_key(mu, generator))


def _checked_rows(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    check_types(mu=mu)
    if mu.dim() == 0:
        raise RuntimeError("mu has shape (): expected (B, ...)")
    return _checked(mu, logvar)


def reparameterize(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Samples N(mu, exp(logvar)) so that gradients reach mu and logvar: z = mu + exp(logvar / 2) * noise.

    Equivalent PyTorch, with other random numbers: `mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)`.
    Method: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 10.

    Args:
        mu: the means, any shape, floating-point.
        logvar: the logarithms of the variances; of the shape, dtype and device of `mu`.
        generator: the source of the noise's key; by default torch's default generator of the device.

    Returns:
        z, of the shape and dtype of `mu`; under autocast float32, as for torch's `exp`.

    Raises:
        RuntimeError: if shapes, dtypes or devices differ, for integers, or for a generator of another device.
        TypeError: if an argument is not a Tensor, or `generator` not a generator.
    """
    if is_symbolic(mu, logvar):
        return record(reparameterize, mu, logvar, generator=generator)
    return _sampled(REPARAMETERIZE, *_checked(mu, logvar), generator)


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) of each row, in nats.

    Equivalent PyTorch: `-0.5 * (1 + logvar - mu * mu - logvar.exp()).flatten(1).sum(1)`.
    Method: Kingma and Welling, "Auto-encoding variational Bayes", 2013, appendix B.

    Args:
        mu: the means, (B, ...), floating-point.
        logvar: the logarithms of the variances; of the shape, dtype and device of `mu`.

    Returns:
        (B,), of the dtype of `mu`; under autocast float32. On the CPU the sum is in float64.

    Raises:
        RuntimeError: if shapes, dtypes or devices differ, for integers, or for a scalar.
        TypeError: if an argument is not a Tensor.
    """
    if is_symbolic(mu, logvar):
        return record(kl_standard_normal, mu, logvar)
    return KL_STANDARD_NORMAL(*_checked_rows(mu, logvar))


def reparameterize_kl(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """`reparameterize` and `kl_standard_normal` in one pass over memory, forward and backward.

    Args:
        mu: the means, (B, ...), floating-point.
        logvar: the logarithms of the variances; of the shape, dtype and device of `mu`.
        generator: the source of the noise's key; by default torch's default generator of the device.

    Returns:
        z, of the shape and dtype of `mu`, and the divergences, (B,).

    Raises:
        RuntimeError, TypeError: as for `reparameterize` and `kl_standard_normal`.
    """
    if is_symbolic(mu, logvar):
        return record(reparameterize_kl, mu, logvar, generator=generator)
    return _sampled(REPARAMETERIZE_KL, *_checked_rows(mu, logvar), generator)
