"""The native modules, loaded once, with the reason kept when one can't be."""

from __future__ import annotations

import importlib
import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from operator import index
from types import ModuleType, SimpleNamespace

import torch

from aigc_fast.environment import setting

ISA_VARIABLE = "AIGC_FAST_CPU_ISA"
HOST_VARIABLE = "AIGC_FAST_CUDA_HOST"
MINIMUM_TORCH = (2, 6)


def _check_torch() -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        raise ImportError(f"aigc_fast needs torch >= 2.6, found torch {torch.__version__}: pip install -U torch")


_check_torch()


_COMPILERS = {"_C": "C++", "_C_cuda": "CUDA", "_C_cuda_host": "C++"}


def _load(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(f"aigc_fast.{name}"), None
    except ModuleNotFoundError as error:
        return None, f"{error}: it was installed without a {_COMPILERS[name]} compiler"
    except ImportError as error:
        return None, f"{error}: it is there and cannot be loaded"


_C, cpu_error = _load("_C")
# Whether the CUDA kernels are those emulated on the CPU, which take CPU tensors.
is_emulated = setting(HOST_VARIABLE, ("0", "1"), "0") == "1"
_CUDA = "_C_cuda_host" if is_emulated else "_C_cuda"
cuda, cuda_error = _load(_CUDA)
# The levels of csrc/core/levels.def, lowest first; none without `_C`.
LEVELS: tuple[str, ...] = _C.LEVELS if _C else ()


def levels() -> tuple[str, ...]:
    """Instruction-set levels that are compiled in and that this machine runs, lowest first; empty without `_C`."""
    return tuple(_C.levels()) if _C else ()


def codes(kind: str, *names: str) -> tuple[int, ...]:
    """The codes by which csrc knows these names; without `_C`, which alone is told them, codes from 0 on."""
    known = _C.constants[kind] if _C else {name: code for code, name in enumerate(names)}
    return tuple(known[name] for name in names)


# The kinds of tensors, by what they have besides sizes, strides, dtype, device and elements.
PLAIN, WANTS_GRADIENT, NEGATED, UNKNOWN = codes("kinds", "PLAIN", "WANTS_GRADIENT", "NEGATED", "UNKNOWN")
_DLPACK_CODES = {
    torch.float32: (2, 32),
    torch.bfloat16: (4, 16),
    torch.float16: (2, 16),
    torch.float64: (2, 64),
    torch.int64: (0, 64),
    torch.bool: (6, 8),
}


def use_torch(exchange: object = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)) -> bool:
    """Tells the kernels what a tensor is; whether this torch lends tensors, by the exchange interface or None."""
    types = torch.Tensor, torch.nn.Parameter
    return _C is not None and _C.use_torch(*types, torch.strided, _DLPACK_CODES, exchange)


def _kind(recording: bool, *tensors: torch.Tensor | None) -> int:
    greatest = PLAIN
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return UNKNOWN
        greatest = max(greatest, NEGATED if tensor.is_neg() else WANTS_GRADIENT * (recording and tensor.requires_grad))
    return greatest


# Whether torch lends kernels the sizes, strides and address of tensors; otherwise asking takes some microseconds.
takes_tensors = use_torch()
# The highest kind among the tensors; the first argument says whether gradients are recorded.
kind = getattr(_C, "kind", _kind)


def _look(tensor: torch.Tensor | None) -> Hashable:
    return tensor if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def signature(*tensors: torch.Tensor | None) -> Hashable:
    """Sizes, strides, dtypes and devices, to be remembered by."""
    if takes_tensors:
        try:
            return _C.signature(*tensors)
        except (RuntimeError, BufferError):  # of tensors without memory, as on the meta device
            pass
    return tuple(_look(tensor) for tensor in tensors)


def _arguments(*values: object) -> Hashable:
    return tuple(_typed(value) for value in values)


def _typed(value: object) -> Hashable:
    if isinstance(value, (tuple, list)):
        return type(value), *((type(item), index(item)) for item in value)
    return type(value), value if value is None or type(value) in (str, float) else index(value)


# Integers, floats, strings, None and sequences of integers, to be remembered by: what is equal but of another type, as
# 2, 2.0 and True are, is not the same. Raises TypeError for all else.
arguments = getattr(_C, "arguments", _arguments)


def _capped_level() -> str | None:
    if _C is None:
        return None
    cap = setting(ISA_VARIABLE, LEVELS, LEVELS[-1])
    allowed = LEVELS[: LEVELS.index(cap) + 1]
    usable = [level for level in levels() if level in allowed]
    return usable[-1] if usable else None


def _kernels(level: str | None) -> SimpleNamespace:
    return SimpleNamespace(**_C.kernels(level)) if _C and level else SimpleNamespace()


_highest = _capped_level()
_its_kernels = _kernels(_highest)
_level: ContextVar[str | None] = ContextVar("aigc_fast_level", default=_highest)
_kernels_in_force: ContextVar[SimpleNamespace] = ContextVar("aigc_fast_kernels", default=_its_kernels)
# The level in force, and its kernels, as functions of `_C`. Bound methods save a Python frame.
level = _level.get
kernels = _kernels_in_force.get


@contextmanager
def use_level(name: str) -> Iterator[None]:
    """Runs the block on one instruction-set level, at most the machine's own; other threads keep theirs.

    Raises:
        ValueError: if this machine or build lacks the level.
    """
    if name not in levels():
        raise ValueError(f"level={name!r}: expected one of {', '.join(levels()) or 'none (no native library)'}")
    before = _level.set(name), _kernels_in_force.set(_kernels(name))
    try:
        yield
    finally:
        _kernels_in_force.reset(before[1])
        _level.reset(before[0])


def has_wide_vectors() -> bool:
    """Whether the kernels in use have vectors of 64 bytes."""
    return level() not in (None, "baseline", "avx2")


def rounds_natively() -> bool:
    """Whether the kernels in use have instructions for products of bfloat16."""
    return level() in ("avx512_bf16", "amx")


def use_huge_pages(address: int, size: int) -> None:
    """Backs `size` bytes that were not touched yet by huge pages, where there are any."""
    if _C is not None:
        _C.use_huge_pages(address, size)


def cpu_reason() -> str | None:
    """Why the native CPU library can't run, or None when it can."""
    if _C is None:
        return f"aigc_fast._C: {cpu_error}"
    if level() is None:
        return f"no compiled level runs under {ISA_VARIABLE}={os.environ.get(ISA_VARIABLE)}"
    return None


def cuda_reason() -> str | None:
    """Why the native CUDA library can't run, or None when it can, as far as no device is asked."""
    if cuda is None:
        return f"aigc_fast.{_CUDA}: {cuda_error}"
    return None


@cache
def device_reason(ordinal: int) -> str | None:
    """Why this CUDA device, with its driver, can't run the native CUDA library, or None when it can; asked once."""
    try:
        cuda.probe(ordinal)
    except RuntimeError as error:
        return str(error)
    return None


# By the device type that a library computes on; looked up at each call, as tests may replace it.
REASONS = {"cpu": lambda: cpu_reason(), "cuda": lambda: cuda_reason()}


def info() -> dict[str, object]:
    """How `_C` was built and what it runs on; `{"error": reason}` when it isn't there."""
    if _C is None:
        return {"error": cpu_reason()}
    return {
        **_C.build_info(),
        "levels": levels(),
        "level": level(),
        "threads": _C.thread_count(),
        "thread_pool": _C.thread_pool(),
    }
