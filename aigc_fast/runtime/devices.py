"""Why a native library or Triton cannot compute where tensors are, and the device and stream to launch on."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime import native
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32

Reason = str | None
LEAST_CAPABILITY = (8, 0)


def cpu(tensor: Tensor, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> Reason:
    """Why the native CPU library can't compute in this dtype where this tensor is, or None."""
    if not tensor.is_cpu:
        return f"the tensors are on {tensor.device}"
    if dtype not in dtypes:
        return f"{dtype} is computed by the reference"
    return native.cpu_reason()


def cuda(dtype: torch.dtype, *tensors: Tensor | None) -> Reason:
    """Why the native CUDA library can't compute in this dtype where these tensors are, or None."""
    device = tensors[0].device
    if device.type != ("cpu" if native.is_emulated else "cuda") or any(_is_elsewhere(one, device) for one in tensors):
        return _places(tensors)
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if dtype not in DTYPES:
        return f"{dtype} is computed by the reference"
    return native.cuda_reason() or native.device_reason(device.index or 0)


def triton(dtype: torch.dtype, *tensors: Tensor | None) -> Reason:
    """Why Triton can't compute in this dtype where these tensors are, or None. Its interpreter takes CPU tensors."""
    device = tensors[0].device
    is_there = device.type == "cuda" or is_interpreted()
    if not is_there or any(_is_elsewhere(one, device) for one in tensors):
        return _places(tensors)
    if dtype not in UP_TO_FLOAT32:
        return f"{dtype} is computed by the reference"
    if not _has_triton():
        return "the package triton is not installed"
    return too_old_for_triton(device.index or 0) if device.type == "cuda" else None


def is_interpreted() -> bool:
    """Whether Triton's kernels are interpreted, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _is_elsewhere(tensor: Tensor | None, device: torch.device) -> bool:
    return tensor is not None and tensor.device != device


def _places(tensors: Sequence[Tensor | None]) -> str:
    devices = dict.fromkeys(str(tensor.device) for tensor in tensors if tensor is not None)
    return f"the tensors are on {' and '.join(devices)}"


@cache
def too_old_for_triton(ordinal: int) -> Reason:
    """Why Triton compiles nothing for this CUDA device, or None; asked once."""
    found = torch.cuda.get_device_capability(ordinal)
    if found >= LEAST_CAPABILITY:
        return None
    has, needs = (".".join(map(str, version)) for version in (found, LEAST_CAPABILITY))
    return f"cuda:{ordinal} has compute capability {has}: Triton's kernels need {needs}"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def lazily(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported at its first call, as Triton is slow to import."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


def queue(tensor: Tensor) -> tuple[int, int]:
    """Where the native CUDA library's work on this tensor goes: the device's ordinal and the stream's address."""
    if native.is_emulated:
        return 0, 0
    stream = torch.cuda.current_stream(tensor.device)
    return stream.device_index, stream.cuda_stream


def current(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, where Triton launches."""
    return nullcontext() if tensor.is_cpu else torch.cuda.device(tensor.device)
