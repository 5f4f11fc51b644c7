"""Reparameterised sampling with the Kullback-Leibler divergence, fused: one pass forward, one pass backward.

The noise is a pure function of the key (see `aigc_fast.ops.random`): nothing is stored for the backward pass, which
makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.random.philox import keyed
from aigc_fast.ops.reparameterize import cpu, cuda, reference
from aigc_fast.runtime import devices
from aigc_fast.runtime.devices import Reason, lazily
from aigc_fast.runtime.operator import Operator
from aigc_fast.runtime.sharding import Sharding


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
    to_kl = (to_mu * mu + 0.5 * to_logvar * torch.expm1(logvar)).unsqueeze(-1).flatten(1).sum(1)
    return (
        to_mu + REPARAMETERIZE_BACKWARD(to_logvar, logvar, ctx.key),
        to_kl,
        to_mu * rows,
        0.5 * REPARAMETERIZE_BACKWARD(to_logvar * grad_z, logvar, ctx.key) + 0.5 * to_logvar * rows * logvar.exp(),
        None,
    )


def _triton_unsupported(tensor: Tensor, *others: Tensor) -> Reason:
    return devices.triton(tensor.dtype, tensor, *others)


def _empty_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu.new_empty(mu.shape[0])


REPARAMETERIZE = Operator(
    "reparameterize",
    "(Tensor mu, Tensor logvar, Tensor philox_key) -> Tensor",
    reference=reference.reparameterize,
    allocate=lambda mu, logvar, key: torch.empty_like(mu),
    setup_context=_setup_sample,
    backward=_sample_backward,
    sharding=Sharding([0, 1], key=2),
)
REPARAMETERIZE_BACKWARD = Operator(
    "reparameterize_backward",
    "(Tensor grad, Tensor logvar, Tensor philox_key) -> Tensor",
    reference=reference.reparameterize_backward,
    allocate=lambda grad, logvar, key: torch.empty_like(logvar),
    setup_context=_setup_all_and_key,
    backward=_sample_gradient_backward,
)
KL_STANDARD_NORMAL = Operator(
    "kl_standard_normal",
    "(Tensor mu, Tensor logvar) -> Tensor",
    reference=reference.kl_standard_normal,
    allocate=_empty_kl,
    setup_context=_setup_kl,
    backward=_kl_backward,
    sharding=Sharding([0, 1]),
)
REPARAMETERIZE_KL = Operator(
    "reparameterize_kl",
    "(Tensor mu, Tensor logvar, Tensor philox_key) -> (Tensor, Tensor)",
    reference=reference.reparameterize_kl,
    allocate=lambda mu, logvar, key: (torch.empty_like(mu), _empty_kl(mu, logvar)),
    setup_context=_setup_all_and_key,
    backward=_sample_kl_backward,
    sharding=Sharding([0, 1], key=2),
)
REPARAMETERIZE_KL_BACKWARD = Operator(
    "reparameterize_kl_backward",
    "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor philox_key) -> (Tensor, Tensor)",
    reference=reference.reparameterize_kl_backward,
    allocate=lambda grad_z, grad_kl, mu, logvar, key: (torch.empty_like(mu), torch.empty_like(logvar)),
    setup_context=_setup_all_and_key,
    backward=_sample_kl_gradient_backward,
)


def _fills(sample: Callable[..., bool], differentiate: Callable[..., bool]) -> dict[Operator, Callable[..., bool]]:
    """What fills each op's results, from a backend's two functions."""
    return {
        REPARAMETERIZE: lambda z, mu, logvar, key: sample((z, None), mu, logvar, key),
        KL_STANDARD_NORMAL: lambda kl, mu, logvar: sample((None, kl), mu, logvar, None),
        REPARAMETERIZE_KL: sample,
        REPARAMETERIZE_BACKWARD: lambda to_logvar, grad, logvar, key: differentiate(
            (None, to_logvar), grad, None, None, logvar, key
        ),
        REPARAMETERIZE_KL_BACKWARD: differentiate,
    }


_of_triton = (lazily(f"{__package__}.triton", name) for name in ("sample", "differentiate"))
for _name, _unsupported, _functions in (
    ("cpu", cpu.unsupported, (cpu.sample, cpu.differentiate)),
    ("cuda", cuda.unsupported, (cuda.sample, cuda.differentiate)),
    ("triton", _triton_unsupported, _of_triton),
):
    for _op, _fill in _fills(*_functions).items():
        _op.register(_name, _fill, _unsupported if _op is KL_STANDARD_NORMAL else keyed(_unsupported, -1, 0))
