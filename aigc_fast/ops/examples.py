"""A call that a generative model makes, of every public function: each op's room has those of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from aigc_fast.ops import ROOMS

Call = tuple[tuple[Any, ...], dict[str, Any]]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Form:
    """A function's call as one of its floating-point tensors alone.

    Attributes:
        shapes: of the tensors.
        call: what the function is called with, from the tensors.
    """

    shapes: Shapes
    call: Callable[..., Call]


@dataclass(frozen=True)
class Example:
    """A public function's call.

    Attributes:
        typical: as models make it: what `explain` and `doctor` show, and the bench measures.
        small: as quick as can be, with arguments that the typical one leaves out: every transform and every check of a
            registered op goes through it.
    """

    typical: Form
    small: Form

    def __call__(self) -> Call:
        """The typical call, of zeros."""
        return self.typical.call(*(torch.zeros(shape) for shape in self.typical.shapes))


Examples = dict[str, Example]


def given(*shapes: tuple[int, ...], **options: Any) -> Form:
    """A call with tensors as they are, and options by name."""
    return Form(shapes, lambda *tensors: (tensors, options))


def examples() -> Examples:
    """Those of all ops, by the public function's name."""
    return {
        name: call for room in ROOMS for name, call in import_module(f"aigc_fast.ops.{room}.examples").EXAMPLES.items()
    }
