"""The public functions: PyTorch's, torchlpc's and torchaudio's signatures over the op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aigc_fast.ops.recursion.operators import RECURSION
from aigc_fast.ops.recursion.reference import past
from aigc_fast.runtime.arguments import check_types
from aigc_fast.runtime.autocast import any_autocast, promoted
from aigc_fast.runtime.recording import is_symbolic, record

_COMPLEX = (torch.complex64, torch.complex128)


def ar_recursion(
    x: Tensor, coeffs: Tensor, state: Tensor | None = None, *, return_state: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """y[t] = x[t] + sum over i from 1 to p of coeffs[i - 1] y[t - i], the all-pole filter of an AR(p) process.

    On the CPU, float32 and float64 run on kernels that process a vector of series, or of parts of one series, at a
    time; bfloat16 and float16 are computed in float32; complex numbers run on PyTorch, step by step. Differentiable any
    number of times with respect to x, coeffs and state. A long signal can be processed in pieces, each starting from
    the state that the one before returned, with the same result as one call. Under autocast arguments of several dtypes
    are taken in the widest of them.

    Args:
        x: (T,) or (B, T), floating-point, complex64 or complex128; any strides.
        coeffs: of x's dtype; (p,), the same for all series; (B, p), one set per series; (T, p) where x is (T,), or
            (B, T, p), one set per step.
        state: (p,) or (B, p), of x's dtype: y[-1], y[-2], ..., the most recent first; zeros by default.
        return_state: whether to also return the last p values of y, the most recent first: the state to continue from.

    Returns:
        y, of x's shape and dtype; with `return_state`, (y, state) with state (B, p), or (p,) where x is (T,). Where the
        filter is unstable, y grows to infinity; a NaN persists to the end of its series.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.

    Equivalent to `scipy.signal.lfilter([1], [1, -c1, ..., -cp], x)`. Method of splitting a long series: Blelloch,
    "Prefix sums and their applications", 1990.
    """
    if is_symbolic(x, coeffs, state):
        return record(ar_recursion, x, coeffs, state, return_state=return_state)
    check_types(x=x, coeffs=coeffs, **({} if state is None else {"state": state}))
    if any_autocast():
        x, coeffs, state = promoted((x, coeffs, state))
    if x.dim() not in (1, 2):
        raise RuntimeError(f"x has shape {tuple(x.shape)}: expected (T,) or (B, T)")
    _check_dtype(x)
    batched = x.dim() == 2
    rows = x if batched else x.unsqueeze(0)
    _check_like("coeffs", coeffs, x)
    c = _batch_of_coeffs(coeffs, x, rows)
    s = None
    if state is not None:
        _check_like("state", state, x)
        s = _batch_of_states(state, rows, c.shape[-1])
    y = RECURSION(rows, c, s, 1)
    found = y if batched else y.squeeze(0)
    if not return_state:
        return found
    last = last_values(y, s, c.shape[-1])
    return found, last if batched else last.squeeze(0)


def _is_taken(x: Tensor) -> bool:
    return x.is_floating_point() or x.dtype in _COMPLEX


def _check_dtype(x: Tensor) -> None:
    if not _is_taken(x):
        raise RuntimeError(f"x has dtype {x.dtype}: expected a floating-point type, complex64 or complex128")


def last_values(y: Tensor, state: Tensor | None, order: int) -> Tensor:
    """(B, p): the last values of y (B, T), the most recent first; from the state where y is shorter."""
    if y.shape[1] < order:
        y = past(y, state, order)
    return y[:, y.shape[1] - order :].flip(1)


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype:
        raise RuntimeError(f"{name} has dtype {tensor.dtype}: expected x's {x.dtype}")
    if tensor.device != x.device:
        raise RuntimeError(f"{name} is on {tensor.device}: expected x's device {x.device}")


def _batch_of_coeffs(coeffs: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """(1, p), (B, p) or, of every step, (B, T, p)."""
    shape = tuple(coeffs.shape)
    if coeffs.dim() == 1:
        return coeffs.unsqueeze(0)
    if x.dim() == 1 and coeffs.dim() == 2:
        coeffs = coeffs.unsqueeze(0)
    if coeffs.shape[:-1] not in (rows.shape[:1], rows.shape):
        (count, length), only = rows.shape, x.dim() == 1
        wanted = f"(p,) or ({length}, p)" if only else f"(p,), ({count}, p) or ({count}, {length}, p)"
        raise RuntimeError(f"coeffs has shape {shape}: expected {wanted} for x of shape {tuple(x.shape)}")
    return coeffs


def _batch_of_states(state: Tensor, rows: Tensor, order: int) -> Tensor:
    count = rows.shape[0]
    if state.shape == (order,):
        return state.expand(count, order)
    if state.shape != (count, order):
        raise RuntimeError(f"state has shape {tuple(state.shape)}: expected ({order},) or ({count}, {order})")
    return state


def sample_wise_lpc(
    x: Tensor, a: Tensor, zi: Tensor | None = None, return_zf: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """y[t] = x[t] - sum over i of a[t, i - 1] y[t - i], `torchlpc.sample_wise_lpc`: its signature and its sign.

    Under autocast, arguments of different dtypes are cast to the widest of them.

    Args:
        x: (B, T), floating-point, complex64 or complex128.
        a: (B, T, p), of x's dtype.
        zi: (B, p): y[-1], y[-2], ..., the most recent first; zeros by default.
        return_zf: whether to also return the last p values of y, the most recent first.

    Returns:
        y (B, T), or (y, zf) with zf (B, p).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.

    Method: Yu and Fazekas, "Differentiable time-varying linear prediction in the context of end-to-end
    analysis-by-synthesis", 2024.
    """
    if is_symbolic(x, a, zi):
        return record(sample_wise_lpc, x, a, zi, return_zf)
    check_types(x=x, a=a, **({} if zi is None else {"zi": zi}))
    if any_autocast():
        x, a, zi = promoted((x, a, zi))
    if x.dim() != 2:
        raise RuntimeError(f"x has shape {tuple(x.shape)}: expected (B, T)")
    if a.dim() != 3 or a.shape[:2] != x.shape:
        raise RuntimeError(f"a has shape {tuple(a.shape)}: expected ({x.shape[0]}, {x.shape[1]}, p)")
    _check_dtype(x)
    _check_like("a", a, x)
    if zi is not None:
        _check_like("zi", zi, x)
        if zi.shape != (x.shape[0], a.shape[2]):
            raise RuntimeError(f"zi has shape {tuple(zi.shape)}: expected ({x.shape[0]}, {a.shape[2]})")
    y = RECURSION(x, a, zi, -1)
    return (y, last_values(y, zi, a.shape[2])) if return_zf else y


def lfilter(waveform: Tensor, a_coeffs: Tensor, b_coeffs: Tensor, clamp: bool = True, batching: bool = True) -> Tensor:
    """a[0] y[t] = sum over i of b[i] x[t - i] - sum over i > 0 of a[i] y[t - i], `torchaudio.functional.lfilter`.

    Under autocast, arguments of different dtypes are cast to the widest of them.

    Args:
        waveform: (..., T), floating-point, complex64 or complex128.
        a_coeffs: (n,) or (F, n), the denominator, lowest delay first; its first coefficient must not be 0.
        b_coeffs: the numerator, of a_coeffs' shape.
        clamp: whether to limit the output to [-1, 1]; must be False for complex numbers, which have no order.
        batching: for coefficients (F, n): whether the waveform is (..., F, T), with a channel for each filter; if
            False, every filter is applied to the whole waveform.

    Returns:
        (..., T), or (..., F, T) for coefficients (F, n).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is not a Tensor.
    """
    if is_symbolic(waveform, a_coeffs, b_coeffs):
        return record(lfilter, waveform, a_coeffs, b_coeffs, clamp, batching)
    check_types(waveform=waveform, a_coeffs=a_coeffs, b_coeffs=b_coeffs)
    if any_autocast():
        waveform, a_coeffs, b_coeffs = promoted((waveform, a_coeffs, b_coeffs))
    _check_filters(waveform, a_coeffs, b_coeffs, batching)
    if clamp and waveform.is_complex():
        raise RuntimeError(f"clamp is True: expected False for a waveform of {waveform.dtype}, which has no order")
    several = a_coeffs.dim() == 2
    filters = a_coeffs.shape[0] if several else 1
    a, b = (coeffs.reshape(filters, -1) for coeffs in (a_coeffs, b_coeffs))
    if several and not batching:
        waveform = waveform.unsqueeze(-2).expand(*waveform.shape[:-1], filters, waveform.shape[-1])
    shape = waveform.shape
    rows = waveform.reshape(math.prod(shape[:-1]) // filters, filters, shape[-1])
    driven = _moving_sum(rows, b / a[:, :1])
    feedback = a[:, 1:] / a[:, :1]
    coeffs = feedback if filters == 1 else feedback.expand(rows.shape[0], -1, -1).flatten(0, 1)
    output = RECURSION(driven.flatten(0, 1), coeffs, None, -1).reshape(shape)
    return output.clamp(-1.0, 1.0) if clamp else output


def _check_filters(waveform: Tensor, a: Tensor, b: Tensor, batching: bool) -> None:
    if not _is_taken(waveform) or waveform.dim() < 1:
        raise RuntimeError(
            f"waveform has shape {tuple(waveform.shape)}, {waveform.dtype}: expected (..., T) of a floating-point "
            "type, complex64 or complex128"
        )
    for name, coeffs in (("a_coeffs", a), ("b_coeffs", b)):
        if coeffs.dtype != waveform.dtype:
            raise RuntimeError(f"{name} has dtype {coeffs.dtype}: expected waveform's {waveform.dtype}")
        if coeffs.device != waveform.device:
            raise RuntimeError(f"{name} is on {coeffs.device}: expected waveform's device {waveform.device}")
    if a.dim() not in (1, 2) or a.shape[-1] < 1:
        raise RuntimeError(f"a_coeffs has shape {tuple(a.shape)}: expected (n,) or (F, n), n at least 1")
    if b.shape != a.shape:
        raise RuntimeError(f"b_coeffs has shape {tuple(b.shape)}: expected a_coeffs' {tuple(a.shape)}")
    if a.dim() == 2 and batching and (waveform.dim() < 2 or waveform.shape[-2] != a.shape[0]):
        raise RuntimeError(
            f"waveform has shape {tuple(waveform.shape)}: expected (..., {a.shape[0]}, T), a channel for each filter "
            "of a_coeffs; batching=False gives every filter the whole waveform"
        )


def _moving_sum(x: Tensor, b: Tensor) -> Tensor:
    """sum over i of b[f][i] x[:, f, t - i]."""
    output = b[:, :1] * x
    for i in range(1, b.shape[1]):
        delayed = torch.nn.functional.pad(x, (i, 0))[..., : x.shape[-1]]
        output = output + b[:, i : i + 1] * delayed
    return output
