"""Memory of large results: a page fault at every 4 KiB of it takes longer than filling it.

What nobody has any more serves the next result of its size, and what is new is asked for in huge pages.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from aigc_fast.environment import byte_setting
from aigc_fast.runtime import native
from aigc_fast.runtime.locks import lock

REUSED_VARIABLE = "AIGC_FAST_REUSED_BYTES"
# Fewer bytes are mapped faster than they are found again; of more than the most, zeroing huge pages is all it costs.
LEAST_REUSED, MOST_REUSED = 512 << 10, 32 << 20
_REUSED_BYTES = 128 << 20
# Storages of a size that are looked at for one result.
_LOOKS = 8
# From this many bytes on, malloc is likely to have returned the memory to the system, and maps it again page by page.
MAPPED_ANEW = 4 << 20
HUGE_PAGE = 1 << 21  # bytes
# The share of memory that a partly filled last huge page may waste.
_MOST_WASTE = 1 / 8
_CONTIGUOUS = torch.contiguous_format


class Reuse:
    """Memory of results, for the next one of its size once nobody has it any more.

    PyTorch's allocator gives such memory back to the system, at a size that depends on what else was freed, and the
    system maps it anew, page by page. Here a storage stays known when it was handed out. It serves again if this is
    the last that knows of it: no tensor, no view, no array, and no weak reference that waits for its end.

    Args:
        cap: bytes that are known at most, used or not; 0 reuses nothing.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap if hasattr(torch._C, "_storage_Use_Count") else 0
        self._bytes = 0
        # By size, that which was asked for last at the end.
        self._known: dict[int, list[torch.UntypedStorage]] = {}
        self._alone = _references([torch.empty(1).untyped_storage()])[1:] if self.cap else (0, 0)
        # Whoever finds it taken goes on without, as a finalizer that runs meanwhile.
        self._busy = lock()

    def take(self, nbytes: int) -> torch.UntypedStorage | None:
        """A storage of so many bytes that nobody has; whoever takes it adds it again once it is in use."""
        if not self._busy.acquire(blocking=False):
            return None
        try:
            return self._unused(self._known.get(nbytes, []), nbytes)
        finally:
            self._busy.release()

    def add(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        """Makes a storage known that is in use."""
        if not self.cap or not self._busy.acquire(blocking=False):
            return
        try:
            known = self._known.pop(nbytes, [])
            known.append(storage)
            self._known[nbytes] = known
            self._bytes += nbytes
            while self._bytes > self.cap:
                self._forget_one(next(iter(self._known)))
        finally:
            self._busy.release()

    def _unused(self, known: list[torch.UntypedStorage], nbytes: int) -> torch.UntypedStorage | None:
        for _ in range(min(len(known), _LOOKS)):
            storage, *references = _references(known)
            if tuple(references) != self._alone:
                known.append(storage)
                continue
            self._bytes -= nbytes
            if storage.nbytes() == nbytes and not weakref.getweakrefcount(storage) and not storage.is_shared():
                return storage
        return None

    def _forget_one(self, nbytes: int) -> None:
        known = self._known[nbytes]
        if known:
            known.pop(0)
            self._bytes -= nbytes
        if not known:
            del self._known[nbytes]


def _references(known: list[torch.UntypedStorage]) -> tuple[torch.UntypedStorage, int, int]:
    """Takes the first storage out of a list, and counts who has it: in Python, and in all."""
    storage = known.pop(0)
    return storage, sys.getrefcount(storage), torch._C._storage_Use_Count(storage._cdata)


reuse = Reuse(byte_setting(REUSED_VARIABLE, _REUSED_BYTES))


def placed(fresh: Tensor) -> Tensor:
    """A tensor that was just allocated and not yet written to, its memory such that it takes few page faults."""
    nbytes = fresh.nbytes
    if nbytes < LEAST_REUSED or not fresh.is_cpu:
        return fresh
    if nbytes <= MOST_REUSED and not torch.are_deterministic_algorithms_enabled():  # which fill what is new
        storage = reuse.take(nbytes)
        if storage is not None:
            fresh.set_(storage, 0, fresh.shape, fresh.stride())
        reuse.add(fresh.untyped_storage(), nbytes)
        if storage is not None:
            return fresh
    if nbytes >= MAPPED_ANEW:
        native.use_huge_pages(fresh.data_ptr(), nbytes)
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
