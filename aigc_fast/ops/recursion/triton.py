"""All-pole recursions of low order as Triton kernels: some series side by side, step after step.

A lane keeps the last values of its series in slots, step n in slot n % SLOTS, so that after every SLOTS steps the slots
are what is stored.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_fast.ops.recursion.rows import coeffs_strides, computed, rows
from aigc_fast.runtime.devices import current

_LANES = 32
_LEAST_SLOTS = 4  # 16 bytes
_STEPS, _SEGMENT = 256, 4096  # of a tile, and of a program


@triton.jit
def _coeffs_of(coeffs, b, step, lag, there, row, step_row, ORDER: tl.constexpr):
    """(lanes, SLOTS): what stands before the lags, from 0 on, at a step; zeros where there are none."""
    at = (b * row + step * step_row)[:, None] + lag[None, :]
    return tl.load(coeffs + at, mask=there[:, None] & (lag < ORDER)[None, :], other=0.0)


@triton.jit(do_not_specialize=["count", "length", "sign"])
def _run(
    out,
    x,
    coeffs,
    state,
    x_row,
    coeffs_row,
    coeffs_step,
    state_row,
    count,
    length,
    sign,
    ORDER: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    REVERSED: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = b < count
    slot = tl.arange(0, SLOTS)
    memory = tl.zeros((LANES, SLOTS), tl.float32)
    if state is not None:
        before = SLOTS - 1 - slot
        at = (b * state_row)[:, None] + before[None, :]
        memory = tl.load(state + at, mask=there[:, None] & (before < ORDER)[None, :], other=0.0)
    for begin in range(0, length, SLOTS):
        n = begin + slot.to(tl.int64)
        inside = there[:, None] & (n < length)[None, :]
        if REVERSED:
            n = length - 1 - n
        given = tl.load(x + (b * x_row)[:, None] + n[None, :], mask=inside, other=0.0)
        found = given
        for r in tl.static_range(SLOTS):
            # Of 64 bits, as what is multiplied with strides must be.
            step = tl.minimum(begin + r, length - 1).to(tl.int64)
            if REVERSED:
                step = length - 1 - step
            this = (slot == r)[None, :]
            value = tl.sum(tl.where(this, given, 0.0), 1)
            # Of coefficients that are not there no product is taken: memory may not be finite.
            if REVERSED:
                lag = (slot + (SLOTS - 1 - r)) % SLOTS
                c = _coeffs_of(coeffs, b, step, lag, there, coeffs_row, coeffs_step, ORDER)
                value += tl.sum(tl.where(this, memory, 0.0), 1)
                added = tl.where((lag < ORDER)[None, :], c * (sign * value)[:, None], 0.0)
                memory = tl.where(this, 0.0, memory) + added
                found = tl.where(this, value[:, None], found)
            else:
                lag = (2 * SLOTS + r - 1 - slot) % SLOTS
                c = _coeffs_of(coeffs, b, step, lag, there, coeffs_row, coeffs_step, ORDER)
                value += sign * tl.sum(tl.where((lag < ORDER)[None, :], c * memory, 0.0), 1)
                memory = tl.where(this, value[:, None], memory)
                found = memory
        tl.store(out + (b * length)[:, None] + n[None, :], found, mask=inside)


@triton.jit
def _products(u, y, state, b, t, u_row, y_row, state_row, length, sign, ORDER: tl.constexpr, SLOTS: tl.constexpr):
    """(steps, SLOTS): sign * u[t] y[t - 1 - lag], with the state for what comes before the first step."""
    lag = tl.arange(0, SLOTS)
    at = t[:, None] - 1 - lag[None, :]
    inside = (t < length)[:, None] & (lag < ORDER)[None, :]
    past = tl.load(y + b * y_row + at, mask=inside & (at >= 0), other=0.0)
    if state is not None:
        past += tl.load(state + b * state_row - 1 - at, mask=inside & (at < 0) & (-at <= ORDER), other=0.0)
    values = sign * tl.load(u + b * u_row + t, mask=t < length, other=0.0)
    return tl.where(inside, values[:, None] * past, 0.0), inside


@triton.jit(do_not_specialize=["length", "parts", "sign"])
def _lags(
    out,
    u,
    y,
    state,
    u_row,
    y_row,
    state_row,
    length,
    parts,
    sign,
    ORDER: tl.constexpr,
    SLOTS: tl.constexpr,
    STEPS: tl.constexpr,
    SEGMENT: tl.constexpr,
    VARYING: tl.constexpr,
):
    """At every step, or summed over a segment of them."""
    program = tl.program_id(0).to(tl.int64)
    b, part = program // parts, program % parts
    lag = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float64)
    for begin in range(part * SEGMENT, tl.minimum(part * SEGMENT + SEGMENT, length), STEPS):
        t = begin + tl.arange(0, STEPS).to(tl.int64)
        products, inside = _products(u, y, state, b, t, u_row, y_row, state_row, length, sign, ORDER, SLOTS)
        if VARYING:
            tl.store(out + ((b * length + t) * ORDER)[:, None] + lag[None, :], products, mask=inside)
        else:
            sums += tl.sum(products, 0).to(tl.float64)
    if not VARYING:
        tl.store(out + program * ORDER + lag, sums, mask=lag < ORDER)


def _slots(order: int) -> int:
    return max(_LEAST_SLOTS, triton.next_power_of_2(order))


def _rows(state: Tensor | None) -> tuple[Tensor | None, int]:
    if state is None:
        return None, 0
    state = rows(state)
    return state, state.stride(0)


def _filter(out: Tensor, x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int, transposed: bool) -> bool:
    found, x, coeffs = computed(out), rows(x), rows(coeffs)
    state, state_row = _rows(state)
    (count, length), order = x.shape, coeffs.shape[-1]
    slots = _slots(order)
    if found.numel():
        strides = x.stride(0), *coeffs_strides(coeffs), state_row
        with current(x):
            _run[(triton.cdiv(count, _LANES),)](
                found,
                x,
                coeffs,
                state,
                *strides,
                count,
                length,
                float(sign),
                ORDER=order,
                SLOTS=slots,
                LANES=_LANES,
                REVERSED=transposed,
                num_warps=slots // _LEAST_SLOTS,
            )
    if found is not out:
        out.copy_(found)
    return True


def recursion(out: Tensor, x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int = 1) -> bool:
    """See `reference.recursion`."""
    return _filter(out, x, coeffs, state, sign, False)


def recursion_transposed(out: Tensor, x: Tensor, coeffs: Tensor, sign: int = 1) -> bool:
    """See `reference.recursion_transposed`."""
    return _filter(out, x, coeffs, None, sign, True)


def recursion_lags(
    out: Tensor, u: Tensor, y: Tensor, state: Tensor | None, order: int, varying: bool, sign: int = 1
) -> bool:
    """See `reference.recursion_lags`."""
    u, y = rows(u), rows(y)
    state, state_row = _rows(state)
    count, length = u.shape
    if out.numel() == 0 or length == 0:
        out.zero_()
        return True
    parts = triton.cdiv(length, _SEGMENT)
    found = computed(out) if varying else torch.empty(count, parts, order, dtype=torch.float64, device=u.device)
    sizes: dict[str, Any] = {"ORDER": order, "SLOTS": _slots(order), "STEPS": _STEPS, "SEGMENT": _SEGMENT}
    with current(u):
        _lags[(count * parts,)](
            found,
            u,
            y,
            state,
            u.stride(0),
            y.stride(0),
            state_row,
            length,
            parts,
            float(sign),
            **sizes,
            VARYING=varying,
        )
    if not varying:
        out.copy_(found.sum(1))
    elif found is not out:
        out.copy_(found)
    return True
