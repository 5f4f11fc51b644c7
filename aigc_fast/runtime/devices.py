"""Why a native library or Triton cannot compute where a tensor is, and the stream to launch on."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime import native
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32

Reason = str | None


def cpu(tensor: Tensor, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> Reason:
    """Why the native CPU library can't compute in this dtype where this tensor is, or None."""
    if not tensor.is_cpu:
        return f"the tensors are on {tensor.device}"
    if dtype not in dtypes:
        return f"{dtype} is computed by the reference"
    return native.cpu_reason()


def cuda(tensor: Tensor, dtype: torch.dtype) -> Reason:
    """Why the native CUDA library can't compute in this dtype where this tensor is, or None."""
    if not tensor.is_cuda:
        return f"the tensors are on {tensor.device}"
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if dtype not in DTYPES:
        return f"{dtype} is computed by the reference"
    return native.cuda_reason()


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


def lazily(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported at its first call, as Triton is slow to import."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


def current_stream(tensor: Tensor) -> int:
    """The address of the CUDA stream that work on this tensor goes to."""
    return torch.cuda.current_stream(tensor.device).cuda_stream
