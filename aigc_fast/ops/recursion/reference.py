"""All-pole recursion in plain PyTorch: y[t] = x[t] + sign * sum over i of c[i] y[t - i], step by step.

Coefficients are (B, p) or (1, p), those of all steps, or (B, T, p) or (1, T, p), those of each. The sign is 1, or -1:
that of a filter's denominator, of whose coefficients no negated copy is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime.dtypes import computing_dtype


def _of_step(coeffs: Tensor, t: int) -> Tensor:
    return coeffs[:, t] if coeffs.dim() == 3 else coeffs


def _of_lag(coeffs: Tensor, lag: int) -> Tensor:
    """(B, T) or (B, 1), what stands before y[t - lag]."""
    return coeffs[..., lag - 1] if coeffs.dim() == 3 else coeffs[:, lag - 1 : lag]


def past(y: Tensor, state: Tensor | None, order: int) -> Tensor:
    """(B, p + T): what came before y, the earliest first, then y."""
    before = y.new_zeros(y.shape[0], order) if state is None else state.flip(1)
    return torch.cat([before, y], 1)


def recursion(x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int = 1) -> Tensor:
    """y of x (B, T); `state` (B, p) holds y[-1], y[-2] and so on, zeros by default."""
    compute, order = computing_dtype(x.dtype), coeffs.shape[-1]
    x_of, c = x.to(compute), coeffs.to(compute)
    values = list((past(x_of[:, :0], None if state is None else state.to(compute), order)).unbind(1))
    for t in range(x.shape[1]):
        y = x_of[:, t]
        if order:
            y = y.add((_of_step(c, t) * torch.stack(values[: -order - 1 : -1], 1)).sum(1), alpha=sign)
        values.append(y)
    return torch.stack(values[order:], 1).to(x.dtype) if x.shape[1] else x.clone()


def recursion_transposed(x: Tensor, coeffs: Tensor, sign: int = 1) -> Tensor:
    """The transpose of a stateless `recursion`: u[t] = x[t] + sign * sum over i of c[i] u[t + i], c of step t + i."""
    compute, order = computing_dtype(x.dtype), coeffs.shape[-1]
    x_of, c = x.to(compute), coeffs.to(compute)
    length = x.shape[1]
    values: list[Tensor] = []
    for t in range(length - 1, -1, -1):
        u = x_of[:, t]
        for lag in range(1, min(order, length - 1 - t) + 1):
            u = u.add(_of_step(c, t + lag)[:, lag - 1] * values[-lag], alpha=sign)
        values.append(u)
    return torch.stack(values[::-1], 1).to(x.dtype) if length else x.clone()


def recursion_lags(u: Tensor, y: Tensor, state: Tensor | None, order: int, varying: bool, sign: int = 1) -> Tensor:
    """sign * u[t] y[t - i] for i from 1 to `order`: (B, T, p), or its sum over the steps, (B, p)."""
    compute, length = computing_dtype(u.dtype), u.shape[1]
    before = past(y.to(compute), None if state is None else state.to(compute), order)
    signed = sign * u.to(compute)
    products = [signed * before[:, order - lag : order - lag + length] for lag in range(1, order + 1)]
    found = torch.stack(products, 2) if order else u.new_zeros(*u.shape, 0, dtype=compute)
    return (found if varying else found.sum(1)).to(u.dtype)


def lags_gradients(
    grad: Tensor, u: Tensor, y: Tensor, state: Tensor | None, sign: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of `recursion_lags` to u, y and the state, of complex ones' conjugates. Differentiable."""
    order, length = grad.shape[-1], u.shape[1]
    before = past(y, state, order)
    to_u, to_before = torch.zeros_like(u), torch.zeros_like(before)
    for lag in range(1, order + 1):
        factor = _of_lag(grad, lag)
        to_u = to_u.add(factor * before[:, order - lag : order - lag + length], alpha=sign)
        to_before = to_before.add(torch.nn.functional.pad(factor * u, (order - lag, lag)), alpha=sign)
    return to_u, to_before[:, order:], None if state is None else to_before[:, :order].flip(1)


def state_gradient(u: Tensor, coeffs: Tensor, sign: int) -> Tensor:
    """(B, p): sign * sum over t of u[t] c[t + 1 + j], c of step t, for y[-1 - j], from the transposed recursion's u.

    Of complex coefficients it takes the conjugates.
    """
    order, steps = coeffs.shape[-1], min(coeffs.shape[-1], u.shape[1])
    found = [u.new_zeros(u.shape[0], order)]
    for t in range(steps):
        c = _of_step(coeffs, t)[:, t:]
        found.append(torch.nn.functional.pad(u[:, t : t + 1] * c, (0, t)))
    return sign * torch.stack(found).sum(0)
