"""Where an op runs: the backends of this machine by device and, on the CPU, by instruction-set level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from calls import FIRST, expected, results
from parity import FLOORS
from torch import Tensor
from watching import INTERPRETED, Dispatched

import aigc_fast
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import NOT_THERE
from aigc_fast.runtime.operator import operators


class Order(NamedTuple):
    """In which emulated blocks, warps and lanes run, and how many blocks at a time."""

    seed: int
    resident_blocks: int


class Place(NamedTuple):
    """A backend that is forced, or "auto", with tensors on a device.

    Attributes:
        backend: as `aigc_fast.backend` takes it.
        device: of the tensors.
        level: the CPU's instruction-set level; None for the machine's.
        order: in which the CPU emulates the CUDA kernels' threads; None for all else.
    """

    backend: str
    device: str = "cpu"
    level: str | None = None
    order: Order | None = None

    def __str__(self) -> str:
        if self.backend == "triton" and self.device == "cpu":
            return "triton-interpreted"
        if self.order is not None:
            return f"cuda-emulated-{self.order.seed}-{self.order.resident_blocks}"
        return "-".join(dict.fromkeys(filter(None, (self.backend, self.level, self.device))))

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.gpu] if self.device == "cuda" else []

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Runs the block there; on a card in float32 proper, as the CPU does."""
        if self.backend == "cuda" and native.cuda is None:
            pytest.skip(native.cuda_reason())
        level = native.use_level(self.level) if self.level else nullcontext()
        if self.order is not None:
            native.cuda.set_order(*self.order)
        # By PyTorch's context manager: its own test helpers, once imported, forbid to set the flag.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), aigc_fast.backend(self.backend), level:
            yield

    def floor(self, dtype: torch.dtype) -> float:
        """As in FLOORS: a card's functions round once more, and Triton's interpreter cuts off what it should round."""
        if self.backend == "triton" and self.device == "cpu" and dtype == torch.bfloat16:
            return 2e-2
        return FLOORS[dtype] if self.backend not in ("cuda", "triton") else 2 * FLOORS[dtype]


_has_native = native.cpu_reason() is None
# On this machine's CPU, at its level.
HERE = [Place("auto"), Place("reference"), *([Place("cpu")] if _has_native else [])]
LEVELS = [Place("cpu", level=level) for level in (native.levels() if _has_native else ())]
# Processes of their own have Triton's kernels in its interpreter, and the CUDA kernels as the CPU emulates them.
INTERPRETER = Place("triton", "cpu")
EMULATOR = [Place("cuda", "cpu", order=Order(*order)) for order in ((0, 1), (1, 3), (2, 8))]
ELSEWHERE = [
    *(Place(backend, "cuda") for backend in ("auto", "reference", "cuda", "triton")),
    *([INTERPRETER] if INTERPRETED else []),
    *(EMULATOR if native.is_emulated and native.cuda is not None else []),
]


@cache
def ops(function: str, differentiated: bool) -> list[tuple[str, tuple[Any, ...]]]:
    """The ops that a function takes, in its gradients too where they are wanted, with their arguments."""
    call = FIRST[function]
    made = expected(call).made
    with aigc_fast.backend("reference"), Dispatched() as dispatched:
        results(made.ours, made.tensors, call, differentiated)
    return dispatched.calls


@cache
def _backends(function: str, differentiated: bool) -> set[str]:
    found = {"auto", "reference", "cpu", "cuda", "triton"}
    for name, args in ops(function, differentiated):
        found -= {backend for backend, reason in operators()[name].choice.reasons(args).items() if reason == NOT_THERE}
    return found


def there(function: str, place: Place, differentiated: bool = False) -> bool:
    """Whether all ops of a function have registered the backend, those of its gradients too where they are wanted."""
    return place.backend in _backends(function, differentiated)


def moved(tensors: Iterable[Tensor], place: Place) -> list[Tensor]:
    return [tensor.detach().to(place.device) for tensor in tensors]
