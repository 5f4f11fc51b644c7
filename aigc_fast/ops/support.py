"""What each backend asks of the tensors it is given: reasons, dtype codes, and the device to launch on."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from aigc_fast import _native

Reason = str | None

_CODED = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = dict(zip(_CODED, _native.codes("dtypes", "FLOAT32", "BFLOAT16", "FLOAT16", "FLOAT64"), strict=True))
# What the factors of a product may be rounded to: none at all, one bfloat16, or the sum of two.
EXACT, ROUNDED, SPLIT = _native.codes("factors", "EXACT", "ROUNDED", "SPLIT")
_FACTORS = {"highest": EXACT, "high": SPLIT, "medium": ROUNDED}
# Each word of a Philox key is drawn from [0, KEY_LIMIT).
KEY_LIMIT = 2**63 - 1
# From so many bytes on, malloc is likely to have given memory back to the system, and maps it anew page by page.
MAPPED_ANEW = 4 << 20
# What PyTorch raises for arguments that don't fit. Its message may name a primitive of its backend rather than the
# argument, so the ops look again.
REFUSALS = (RuntimeError, TypeError, AttributeError, IndexError, BufferError)
PRECISIONS = tuple(_FACTORS)
# The float32 precision that a call was given of its own, where it was.
own_precision: ContextVar[str | None] = ContextVar("aigc_fast_precision", default=None)
_own_precision = own_precision.get
_pytorchs_precision = torch._C._get_float32_matmul_precision
any_autocast = torch._C._is_any_autocast_enabled
UP_TO_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)


def cpu(tensor: Tensor, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> Reason:
    """Why the native CPU library can't compute in this dtype where this tensor is, or None."""
    if not tensor.is_cpu:
        return f"the tensors are on {tensor.device}"
    if dtype not in dtypes:
        return f"{dtype} is computed by the reference"
    return _native.cpu_reason()


def has_wide_vectors() -> bool:
    """Whether the kernels in use have vectors of 64 bytes."""
    return _native.cpu.level not in (None, "baseline", "avx2")


def on_huge_pages(fresh: Tensor) -> Tensor:
    """A tensor that was just allocated on the CPU, its memory in huge pages where it is large."""
    if fresh.nbytes >= MAPPED_ANEW:
        _native.use_huge_pages(fresh.data_ptr(), fresh.nbytes)
    return fresh


def cuda(tensor: Tensor, dtype: torch.dtype) -> Reason:
    """Why the native CUDA library can't compute in this dtype where this tensor is, or None."""
    if not tensor.is_cuda:
        return f"the tensors are on {tensor.device}"
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if dtype not in DTYPES:
        return f"{dtype} is computed by the reference"
    return _native.cuda_reason()


def triton(tensor: Tensor, dtype: torch.dtype) -> Reason:
    """Why Triton can't compute in this dtype where this tensor is, or None. Its interpreter takes CPU tensors."""
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {tensor.device}"
    if dtype not in UP_TO_FLOAT32:
        return f"{dtype} is computed by the reference"
    return None if _has_triton() else "the package triton is not installed"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def check_types(**tensors: Tensor) -> None:
    """Refuses, by name, what is not a tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}: expected a Tensor")


def has_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on where this tensor is; what every call asks, so the cheap question comes first."""
    return any_autocast() and not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def autocast(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors in autocast's dtype, as the ops that it lowers take them; float64 and integers stay."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def promoted(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The tensors as autocast's policy "promote" has them, in the widest dtype among them; integers stay."""
    dtypes = {t.dtype for t in tensors if t is not None and t.is_floating_point()}
    if len(dtypes) < 2 or not has_autocast(tensors[0]):
        return tensors
    widest = reduce(torch.promote_types, dtypes)
    return [t.to(widest) if t is not None and t.is_floating_point() else t for t in tensors]


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


def lazily(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported at its first call, as Triton is slow to import."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


def current_stream(tensor: Tensor) -> int:
    """The address of the CUDA stream that work on this tensor goes to."""
    return torch.cuda.current_stream(tensor.device).cuda_stream
