"""What the factors of float32 products may be rounded to: PyTorch's switch, or a precision of the call's own."""

from __future__ import annotations

from contextvars import ContextVar

import torch

from aigc_fast.runtime import native

# What the factors of a product may be rounded to: none at all, one bfloat16, or the sum of two.
EXACT, ROUNDED, SPLIT = native.codes("factors", "EXACT", "ROUNDED", "SPLIT")
_FACTORS = {"highest": EXACT, "high": SPLIT, "medium": ROUNDED}
PRECISIONS = tuple(_FACTORS)
# The float32 precision that a call was given of its own, where it was.
own_precision: ContextVar[str | None] = ContextVar("aigc_fast_precision", default=None)
_own_precision = own_precision.get
_pytorchs_precision = torch._C._get_float32_matmul_precision


def precision() -> str:
    """The float32 precision in force: the call's own, or what PyTorch's switch says."""
    return _own_precision() or _pytorchs_precision()


def check_precision(precision: str | None) -> None:
    """Refuses what is neither None nor a level of PyTorch's switch."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}, or None")


def factors_of(dtype: torch.dtype) -> int:
    """What the factors of products in this dtype may be rounded to; in float32 `precision` says so."""
    if dtype == torch.float32:
        return _FACTORS[precision()]
    return ROUNDED if dtype == torch.bfloat16 else EXACT
