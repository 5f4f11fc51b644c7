"""All-pole recursion, its transpose, and the gradient to its coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from aigc_fast.ops.recursion import cpu, cuda, reference
from aigc_fast.runtime import devices
from aigc_fast.runtime.devices import Reason, lazily
from aigc_fast.runtime.operator import Operator
from aigc_fast.runtime.sharding import Sharding

__all__ = ["RECURSION", "RECURSION_LAGS", "RECURSION_TRANSPOSED"]


def _empty(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _empty_lags(u: Tensor, y: Tensor, state: Tensor | None, order: int, varying: bool, sign: int = 1) -> Tensor:
    return u.new_empty((*u.shape, order) if varying else (u.shape[0], order))


def _to_coeffs(u: Tensor, y: Tensor, state: Tensor | None, coeffs: Tensor, sign: int) -> Tensor:
    found = RECURSION_LAGS(u, y, state, coeffs.shape[-1], coeffs.dim() == 3, sign)
    return found.sum(0, keepdim=True) if coeffs.shape[0] == 1 and u.shape[0] != 1 else found


def _conj(tensor: Tensor | None) -> Tensor | None:
    """What stands in the gradient of a product for a factor."""
    return tensor.conj() if tensor is not None and tensor.is_complex() else tensor


def _setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    _, coeffs, state, ctx.sign = inputs
    ctx.save_for_backward(coeffs, state, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    coeffs, state, y = map(_conj, ctx.saved_tensors)
    _, needs_coeffs, needs_state, *_ = ctx.needs_input_grad
    u = RECURSION_TRANSPOSED(grad, coeffs, ctx.sign)
    to_coeffs = _to_coeffs(u, y, state, coeffs, ctx.sign) if needs_coeffs else None
    to_state = reference.state_gradient(u, coeffs, ctx.sign) if needs_state else None
    return u, to_coeffs, to_state, None


def _setup_transposed(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    _, coeffs, ctx.sign = inputs
    ctx.save_for_backward(coeffs, output)


def _backward_transposed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    coeffs, u = map(_conj, ctx.saved_tensors)
    w = RECURSION(grad, coeffs, None, ctx.sign)
    return w, _to_coeffs(u, w, None, coeffs, ctx.sign) if ctx.needs_input_grad[1] else None, None


def _setup_lags(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    *tensors, _, _, ctx.sign = inputs
    ctx.save_for_backward(*tensors)


def _backward_lags(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *reference.lags_gradients(grad, *map(_conj, ctx.saved_tensors), ctx.sign), None, None, None


RECURSION = Operator(
    "recursion",
    "(Tensor x, Tensor coeffs, Tensor? state, int sign=1) -> Tensor",
    reference=reference.recursion,
    allocate=_empty,
    setup_context=_setup,
    backward=_backward,
    sharding=Sharding([0, 1, 2]),
)
RECURSION_TRANSPOSED = Operator(
    "recursion_transposed",
    "(Tensor x, Tensor coeffs, int sign=1) -> Tensor",
    reference=reference.recursion_transposed,
    allocate=_empty,
    setup_context=_setup_transposed,
    backward=_backward_transposed,
)
RECURSION_LAGS = Operator(
    "recursion_lags",
    "(Tensor u, Tensor y, Tensor? state, SymInt order, bool varying, int sign=1) -> Tensor",
    reference=reference.recursion_lags,
    allocate=_empty_lags,
    setup_context=_setup_lags,
    backward=_backward_lags,
)
MOST_TRITON_LAGS = 8  # what a lane keeps in registers


def _triton_unsupported(order: int, *tensors: Tensor | None) -> Reason:
    if order > MOST_TRITON_LAGS:
        return f"order {order}: Triton's kernels take up to {MOST_TRITON_LAGS}"
    return devices.triton(tensors[0].dtype, *tensors)


_TRITON_UNSUPPORTED: dict[Operator, Callable[..., Reason]] = {
    RECURSION: lambda x, coeffs, state, sign=1: _triton_unsupported(coeffs.shape[-1], x, coeffs, state),
    RECURSION_TRANSPOSED: lambda x, coeffs, sign=1: _triton_unsupported(coeffs.shape[-1], x, coeffs),
    RECURSION_LAGS: lambda u, y, state, order, *rest: _triton_unsupported(order, u, y, state),
}
for _op, _unsupported in _TRITON_UNSUPPORTED.items():
    for _name, _backend in (("cpu", cpu), ("cuda", cuda)):
        _op.register(_name, getattr(_backend, _op.name), _backend.unsupported)
    _op.register("triton", lazily(f"{__package__}.triton", _op.name), _unsupported)
