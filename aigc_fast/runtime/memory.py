"""Memory of results: a page fault at every 4 KiB of a large one takes longer than filling it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime import native

# From so many bytes on, malloc is likely to have given memory back to the system, and maps it anew page by page.
MAPPED_ANEW = 4 << 20
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
