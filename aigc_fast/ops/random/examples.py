"""Typical calls: what `explain` and `doctor` show, and tests go through."""

from __future__ import annotations

from aigc_fast.ops.examples import Examples, tensors

EXAMPLES: Examples = {
    "dropout": tensors(1, 64, 64, 28, 28),
    "rand": lambda: ((64, 512), {}),
    "randn": lambda: ((64, 512), {}),
}
