"""What the factors of float32 products may be rounded to: PyTorch's switch, or a precision of the call's own."""

from __future__ import annotations

from contextvars import ContextVar

import torch

from aigc_fast.runtime import native
from aigc_fast.runtime.machine import is_intels

# What the factors of a product may be rounded to: nothing, one bfloat16, or the sum of two.
EXACT, ROUNDED, SPLIT = native.codes("factors", "EXACT", "ROUNDED", "SPLIT")
_FACTORS = {"highest": EXACT, "high": SPLIT, "medium": ROUNDED}
PRECISIONS = tuple(_FACTORS)
# Uses of each number of a weight from which products of floats are faster than those of bfloat16's pairs on a processor
# that has a pair's product at half the rate of two floats', as Intel's: 1.35 to 1.75 times PyTorch's speed in linear
# layers, 1.2 to 3.1 in convolutions, against 0.8 to 1.4. Below it half the bytes of a weight count for more. AVX-512
# BF16, Intel Xeon (family 6 model 207), 2 threads, torch 2.13.0, 2026-11-29.
USES_OF_FLOATS = 16
# The float32 precision of a single call, if it was given one.
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


def factors_for(dtype: torch.dtype, uses: int) -> int:
    """`factors_of` where a call multiplies each number of a weight so often: what is fastest at no less precision."""
    prefers_floats = native.level() == "avx512_bf16" and is_intels()
    return EXACT if dtype == torch.bfloat16 and uses >= USES_OF_FLOATS and prefers_floats else factors_of(dtype)
