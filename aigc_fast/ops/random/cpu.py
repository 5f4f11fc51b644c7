"""The native kernels of csrc/cpu/random.cpp."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from aigc_fast.ops.random.philox import KEY_LIMIT
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32
from aigc_fast.runtime.memory import LEAST_REUSED, fill_densely, placed

_ANY_DTYPE = tuple(DTYPES)
_FLOAT32 = DTYPES[torch.float32]
_LARGE = LEAST_REUSED // torch.float32.itemsize


class _PerThread(threading.local):
    """A key that is drawn in place, again and again: a new tensor for each call takes longer than few numbers."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            key = torch.empty(2, dtype=torch.int64)
        self.draw = partial(key.random_, KEY_LIMIT)


_per_thread = _PerThread()


def passing_key() -> Tensor:
    """A key as `draw_key` draws of the CPU's default generator, until this thread draws the next one."""
    return _per_thread.draw()


def normal_unsupported(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Reason:
    """Why this backend cannot draw these uniforms or normals, or None."""
    return devices.cpu(key, dtype, UP_TO_FLOAT32)


uniform_unsupported = normal_unsupported


def dropout_unsupported(input: Tensor, key: Tensor, p: float) -> Reason:
    """Why this backend cannot drop out of this input, or None."""
    return devices.cpu(input, input.dtype, _ANY_DTYPE)


def fill(kernel: str, size: tuple[int | Sequence[int], ...]) -> Tensor | None:
    """The kernel's float32 numbers of `torch.empty(*size)`; the key is the CPU's default generator's, as of `draw_key`.

    None, with nothing drawn, where float32 is not the default, or no kernel is there.

    Raises:
        TypeError, RuntimeError: for an empty size, or one that PyTorch does not take.
    """
    fill_in = getattr(native.kernels(), kernel, None)
    out = torch.empty(*size)
    if fill_in is None or out.dtype is not torch.float32:
        return None
    count = out.numel()
    if count >= _LARGE:
        placed(out)
    fill_in(out.data_ptr(), count, _FLOAT32, _per_thread.draw().data_ptr())
    return out


def _fill(kernel: Callable[..., object], out: Tensor, key: Tensor) -> bool:
    key = key.contiguous()
    kernel(out.data_ptr(), out.numel(), DTYPES[out.dtype], key.data_ptr())
    return True


def normal(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Standard normals of `size` from the key; see `reference.normal`."""
    return _fill(native.kernels().normal, out, key)


def uniform(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Uniforms in [0, 1) of `size` from the key; see `reference.uniform`."""
    return _fill(native.kernels().uniform, out, key)


def dropout(out: Tensor, input: Tensor, key: Tensor, p: float) -> bool:
    """`input` with elements dropped by the key's mask, the rest scaled; see `reference.dropout`."""
    kernel = native.kernels().dropout
    return kernel(out, input, key, p) or fill_densely(kernel, (out,), input, key, p)
