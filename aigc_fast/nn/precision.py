"""The float32 precision of one layer, where `optimize(precision=...)` asked for another than PyTorch's own switch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

LEVELS = ("highest", "high", "medium")


@contextmanager
def float32_precision(level: str) -> Iterator[None]:
    """Sets `torch.set_float32_matmul_precision` inside a `with` block.

    Args:
        level: "highest", "high" or "medium".
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
