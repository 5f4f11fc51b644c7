"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through.

Coefficients are divided by their number: of numbers below 1, filters are stable then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.examples import Call, Example, Examples, Form


def _recursion(x: Tensor, coeffs: Tensor, *state: Tensor) -> Call:
    return (x, coeffs / coeffs.shape[-1], *(values[: x.shape[0]] for values in state)), {}


def _of_every_step(x: Tensor, coeffs: Tensor) -> Call:
    return (x, coeffs[: x.shape[0]] / coeffs.shape[-1]), {}


def _filter(x: Tensor, a: Tensor, b: Tensor) -> Call:
    return (x, torch.cat([torch.ones_like(a[:1]), a / a.shape[-1]]), b), {"clamp": False}


EXAMPLES: Examples = {
    "ar_recursion": Example(Form(((64, 16_000), (10,)), _recursion), Form(((3, 17), (4,), (3, 4)), _recursion)),
    "sample_wise_lpc": Example(
        Form(((8, 48_000), (8, 48_000, 22)), _of_every_step), Form(((3, 17), (3, 17, 4)), _of_every_step)
    ),
    "lfilter": Example(Form(((2, 48_000), (2,), (3,)), _filter), Form(((3, 17), (3,), (4,)), _filter)),
}
