"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.ops.examples import Call, Example, Examples, Form, given


def _like(tensor: Tensor) -> Call:
    return tuple(tensor.shape), {"dtype": tensor.dtype, "device": tensor.device}


_NUMBERS = Example(Form(((64, 512),), _like), Form(((6, 7),), _like))
EXAMPLES: Examples = {
    "dropout": Example(given((64, 64, 28, 28)), given((6, 7), p=0.3)),
    "rand": _NUMBERS,
    "randn": _NUMBERS,
}
