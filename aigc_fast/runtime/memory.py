"""Memory of results: a page fault at every 4 KiB of a large one takes longer than filling it."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.runtime import native

# From so many bytes on, malloc is likely to have given memory back to the system, and maps it anew page by page.
MAPPED_ANEW = 4 << 20


def on_huge_pages(fresh: Tensor) -> Tensor:
    """A tensor that was just allocated on the CPU, its memory in huge pages where it is large."""
    if fresh.nbytes >= MAPPED_ANEW:
        native.use_huge_pages(fresh.data_ptr(), fresh.nbytes)
    return fresh
