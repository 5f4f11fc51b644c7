"""Memory in huge pages: a page fault at every 4 KiB of a large result takes longer than filling it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime import native

# From this many bytes on, malloc is likely to have returned the memory to the system, and maps it again page by page.
MAPPED_ANEW = 4 << 20
HUGE_PAGE = 1 << 21  # bytes
# The share of memory that a partly filled last huge page may waste.
_MOST_WASTE = 1 / 8
_CONTIGUOUS = torch.contiguous_format


def on_huge_pages(fresh: Tensor) -> Tensor:
    """A tensor that was just allocated, its memory in huge pages where it is large and the CPU's."""
    if fresh.nbytes >= MAPPED_ANEW and fresh.is_cpu:
        native.use_huge_pages(fresh.data_ptr(), fresh.nbytes)
    return fresh


def fill_densely(kernel: Callable[..., Any], results: Sequence[Tensor | None], *inputs: Any) -> bool:
    """Calls a kernel that takes contiguous tensors alone; copies stand for others.

    Args:
        kernel: takes the results, which it fills, then the inputs.
        results: tensors or None.
        inputs: tensors, and whatever else the kernel takes.

    Returns:
        True: the results are filled.
    """
    dense = [
        result if result is None or result.is_contiguous() else torch.empty_like(result, memory_format=_CONTIGUOUS)
        for result in results
    ]
    kernel(*dense, *(value.contiguous() if isinstance(value, Tensor) else value for value in inputs))
    for result, filled in zip(results, dense, strict=True):
        if filled is not result:
            result.copy_(filled)
    return True


def _in_huge_pages(nbytes: int) -> int:
    """How many bytes, from the first on, are worth huge pages."""
    whole = nbytes // HUGE_PAGE * HUGE_PAGE
    waste = whole + HUGE_PAGE - nbytes
    return whole + HUGE_PAGE if whole < nbytes and waste <= _MOST_WASTE * nbytes else whole


def footprint(nbytes: int) -> int:
    """Bytes of the machine's memory that `lasting` takes."""
    return max(nbytes, _in_huge_pages(nbytes))


def lasting(nbytes: int) -> Tensor:
    """Memory that is read whole at many calls: in huge pages as far as it fills them, given back when it goes.

    Returns:
        At least so many bytes; the dtype is of no meaning.
    """
    huge = _in_huge_pages(nbytes)
    if not huge or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(-(-nbytes // torch.float32.itemsize), dtype=torch.float32)
    # No page of the surplus is ever touched.
    size = footprint(nbytes) + HUGE_PAGE
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    first = -memory.data_ptr() % HUGE_PAGE
    with suppress(OSError):  # of a system without huge pages
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
        mapped.madvise(mmap.MADV_HUGEPAGE, first, huge)
    return memory[first : first + footprint(nbytes)]
