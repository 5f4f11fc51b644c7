"""Reparameterised sampling with the Kullback-Leibler divergence, fused: one pass forward, one pass backward.

The noise is a pure function of the key (see `aigc_fast.ops.random`): nothing is stored for the backward pass, which
makes it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.random import draw_key
from aigc_fast.ops.random.cpu import passing_key
from aigc_fast.ops.reparameterize import cpu, cuda, reference
from aigc_fast.runtime import devices
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.devices import Reason, lazily
from aigc_fast.runtime.operator import Operator, is_plain
from aigc_fast.runtime.recording import is_for_onnx, is_symbolic, record


def _setup_sample(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    _, logvar, ctx.key = inputs
    ctx.save_for_backward(logvar)


def _sample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    (logvar,) = ctx.saved_tensors
    return grad, REPARAMETERIZE_BACKWARD(grad, logvar, ctx.key), None


def _setup_all_and_key(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    *tensors, ctx.key = inputs
    ctx.save_for_backward(*tensors)


def _setup_kl(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _sample_gradient_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
    grad, logvar = ctx.saved_tensors
    to_grad = REPARAMETERIZE_BACKWARD(upstream, logvar, ctx.key)
    return to_grad, 0.5 * REPARAMETERIZE_BACKWARD(upstream * grad, logvar, ctx.key), None


def _kl_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    mu, logvar = ctx.saved_tensors
    grad = reference.per_row(grad, mu)
    return grad * mu, 0.5 * grad * torch.expm1(logvar)


def _sample_kl_backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor, Tensor, None]:
    mu, logvar = ctx.saved_tensors
    return *REPARAMETERIZE_KL_BACKWARD(grad_z, grad_kl, mu, logvar, ctx.key), None


def _sample_kl_gradient_backward(ctx: Any, to_mu: Tensor, to_logvar: Tensor) -> tuple[Tensor | None, ...]:
    grad_z, grad_kl, mu, logvar = ctx.saved_tensors
    rows = reference.per_row(grad_kl, mu)
    to_kl = (to_mu * mu + 0.5 * to_logvar * torch.expm1(logvar)).reshape(grad_kl.numel(), -1).sum(1)
    return (
        to_mu + REPARAMETERIZE_BACKWARD(to_logvar, logvar, ctx.key),
        to_kl,
        to_mu * rows,
        0.5 * REPARAMETERIZE_BACKWARD(to_logvar * grad_z, logvar, ctx.key) + 0.5 * to_logvar * rows * logvar.exp(),
        None,
    )


def _triton_unsupported(tensor: Tensor, *others: Tensor) -> Reason:
    return devices.triton(tensor, tensor.dtype)


def _fake_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu.new_empty(mu.shape[:1])


REPARAMETERIZE = Operator(
    "reparameterize",
    "(Tensor mu, Tensor logvar, Tensor philox_key) -> Tensor",
    reference=reference.reparameterize,
    fake=lambda mu, logvar, key: torch.empty_like(mu),
    setup_context=_setup_sample,
    backward=_sample_backward,
)
REPARAMETERIZE_BACKWARD = Operator(
    "reparameterize_backward",
    "(Tensor grad, Tensor logvar, Tensor philox_key) -> Tensor",
    reference=reference.reparameterize_backward,
    fake=lambda grad, logvar, key: torch.empty_like(logvar),
    setup_context=_setup_all_and_key,
    backward=_sample_gradient_backward,
)
KL_STANDARD_NORMAL = Operator(
    "kl_standard_normal",
    "(Tensor mu, Tensor logvar) -> Tensor",
    reference=reference.kl_standard_normal,
    fake=_fake_kl,
    setup_context=_setup_kl,
    backward=_kl_backward,
)
REPARAMETERIZE_KL = Operator(
    "reparameterize_kl",
    "(Tensor mu, Tensor logvar, Tensor philox_key) -> (Tensor, Tensor)",
    reference=reference.reparameterize_kl,
    fake=lambda mu, logvar, key: (torch.empty_like(mu), _fake_kl(mu, logvar)),
    setup_context=_setup_all_and_key,
    backward=_sample_kl_backward,
)
REPARAMETERIZE_KL_BACKWARD = Operator(
    "reparameterize_kl_backward",
    "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor philox_key) -> (Tensor, Tensor)",
    reference=reference.reparameterize_kl_backward,
    fake=lambda grad_z, grad_kl, mu, logvar, key: (torch.empty_like(mu), torch.empty_like(logvar)),
    setup_context=_setup_all_and_key,
    backward=_sample_kl_gradient_backward,
)
for _op in (
    REPARAMETERIZE,
    REPARAMETERIZE_BACKWARD,
    KL_STANDARD_NORMAL,
    REPARAMETERIZE_KL,
    REPARAMETERIZE_KL_BACKWARD,
):
    _op.choice.register("cpu", getattr(cpu, _op.name), cpu.unsupported)
    _op.choice.register("cuda", getattr(cuda, _op.name), cuda.unsupported)
    _op.choice.register("triton", lazily(f"{__name__}.triton", _op.name), _triton_unsupported)
    _op.choice.register("reference", getattr(reference, _op.name))


def _checked(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    if not mu.is_floating_point():
        raise RuntimeError(f"mu: got {mu.dtype}, expected a floating-point type")
    if mu.shape != logvar.shape:
        raise RuntimeError(f"logvar: got shape {list(logvar.shape)}, expected that of mu, {list(mu.shape)}")
    if mu.device != logvar.device:
        raise RuntimeError(f"logvar: got device {logvar.device}, expected that of mu, {mu.device}")
    if has_autocast(mu) and mu.dtype != torch.float64 and logvar.is_floating_point():
        return mu.float(), logvar.float()
    if mu.dtype != logvar.dtype:
        raise RuntimeError(f"logvar: got {logvar.dtype}, expected that of mu, {mu.dtype}")
    return mu, logvar


def _sampled(op: Operator, mu: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Any:
    if is_for_onnx() and generator is None:
        noise = torch.randn_like(mu)
        z = mu + noise * (0.5 * logvar).exp()
        return z if op is REPARAMETERIZE else (z, reference.kl_standard_normal(mu, logvar))
    # Small samples take less time than the op's call, and nothing asks for the key of these again.
    if generator is None and not mu.requires_grad and cpu.unsupported(mu) is None and is_plain(mu, logvar):
        return getattr(cpu, op.name)(mu, logvar, passing_key())
    return op(mu, logvar, draw_key(mu, generator))


def _checked_rows(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    if mu.dim() == 0:
        raise RuntimeError("mu: got a scalar, expected at least one dimension, the batch")
    return _checked(mu, logvar)


def reparameterize(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Samples N(mu, exp(logvar)) so that gradients reach mu and logvar: z = mu + exp(logvar / 2) * noise.

    Equivalent PyTorch, with other random numbers: `mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)`.
    Method: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 10.

    Args:
        mu: the means, any shape, floating-point.
        logvar: the logarithms of the variances; shape, dtype and device of `mu`.
        generator: the source of the noise's key; by default torch's default generator of the device.

    Returns:
        z, of the shape and dtype of `mu`. Under autocast float32, as torch's `exp`.

    Raises:
        RuntimeError: if shapes, dtypes or devices differ, for integers, or for a generator of another device.
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
        logvar: the logarithms of the variances; shape, dtype and device of `mu`.

    Returns:
        (B,), of the dtype of `mu`; under autocast float32. Summed in float64 on the CPU.

    Raises:
        RuntimeError: if shapes, dtypes or devices differ, for integers or a scalar.
    """
    if is_symbolic(mu, logvar):
        return record(kl_standard_normal, mu, logvar)
    return KL_STANDARD_NORMAL(*_checked_rows(mu, logvar))


def reparameterize_kl(mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """`reparameterize` and `kl_standard_normal` in one pass over memory, forward and backward.

    Args:
        mu: the means, (B, ...), floating-point.
        logvar: the logarithms of the variances; shape, dtype and device of `mu`.
        generator: the source of the noise's key; by default torch's default generator of the device.

    Returns:
        z, of the shape and dtype of `mu`, and the divergences, (B,).

    Raises:
        RuntimeError: as for `reparameterize` and `kl_standard_normal`.
    """
    if is_symbolic(mu, logvar):
        return record(reparameterize_kl, mu, logvar, generator=generator)
    return _sampled(REPARAMETERIZE_KL, *_checked_rows(mu, logvar), generator)
