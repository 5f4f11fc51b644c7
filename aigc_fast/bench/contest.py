"""What stands against what in a line of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from aigc_fast.bench.machine import Work
from aigc_fast.bench.parity import check_parity, check_peer

OURS, PYTORCH, CHANNELS_LAST = "aigc_fast", "PyTorch", ", channels_last"

Call = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Contest:
    """Ways to do the same.

    Attributes:
        ours: ways of this package by name: one for each layout that a user's model may be in.
        peers: other ways by name.
        gate: checks the results; the worst error of ours against float64, and PyTorch's.
        work: what the call takes at least; None where no limit is told.
        absent: peers that would take part and are not installed, or do not compute on the device.
        peak: measures the most memory that ours takes, over what it keeps; None where nobody asks.
    """

    ours: dict[str, Call]
    peers: dict[str, Call]
    gate: Callable[[], tuple[float, float]]
    work: Work | None = None
    absent: tuple[str, ...] = ()
    peak: Callable[[], float] | None = None


def against_float64(
    ours: dict[str, Call],
    stock: dict[str, Call],
    exact: Call,
    dtype: torch.dtype,
    others: Mapping[str, Call] = MappingProxyType({}),
) -> Callable[[], tuple[float, float]]:
    """A gate that holds each of ours to PyTorch's in the same layout and to float64.

    Args:
        ours: by name.
        stock: PyTorch's, in the order of ours.
        exact: the same in float64.
        dtype: that ours are computed in.
        others: peers that need only compute the same, to many times a format's rounding.
    """

    def gate() -> tuple[float, float]:
        wanted = exact()
        for name, other in others.items():
            check_peer(name, other(), wanted, dtype)
        found = [check_parity(a(), b(), wanted, dtype) for a, b in zip(ours.values(), stock.values(), strict=True)]
        return max(error for error, _ in found), max(own for _, own in found)

    return gate


def derivatives(outputs: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor]:
    """The gradients of inputs."""
    return torch.autograd.grad(outputs, tuple(inputs), gradient)


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors that gradients are asked of, with the memory of others."""
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)
