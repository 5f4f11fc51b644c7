"""A call that a generative model makes, of every public function: each op's room has those of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from aigc_fast.ops import ROOMS

Call = tuple[tuple[Any, ...], dict[str, Any]]
# By the public function's name; tensors are made at the call, of zeros or ones.
Examples = dict[str, Callable[[], Call]]


def tensors(count: int, *shape: int) -> Callable[[], Call]:
    """A call with so many tensors of one shape."""
    return lambda: (tuple(torch.zeros(shape) for _ in range(count)), {})


def examples() -> Examples:
    """Those of all ops."""
    return {
        name: call for room in ROOMS for name, call in import_module(f"aigc_fast.ops.{room}.examples").EXAMPLES.items()
    }
