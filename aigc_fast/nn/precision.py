"""The float32 precision of one layer, where `optimize(precision=...)` asked for another than PyTorch's own switch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LEVELS = ("highest", "high", "medium")


@contextmanager
def float32_precision(level: str | None) -> Iterator[None]:
    """Sets `torch.set_float32_matmul_precision` inside a `with` block.

    Args:
        level: "highest", "high" or "medium"; None changes nothing.
    """
    if level is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def obeys_precision(cls: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """Class decorator: the forward runs at the precision in the instance's `float32_precision`, unless that is None.

    Not in a compiled or exported graph: its ops choose their kernels when the graph runs, by the switch as it is then.
    """
    plain = cls.forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.float32_precision is None or torch.compiler.is_compiling():
            return plain(self, *args, **kwargs)
        with float32_precision(self.float32_precision):
            return plain(self, *args, **kwargs)

    cls.float32_precision = None
    cls.forward = forward
    return cls
