"""What must hold before anything is timed: no further from float64 than twice PyTorch's own error."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""The error that a format's own rounding brings, whatever PyTorch's is."""

_OF_PEERS = 100
"""How many times a format's rounding a peer may be off: beyond, it computes something else."""


class ParityError(AssertionError):
    """A result that is too far from float64's to be timed."""


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in float64."""
    exact = exact.cpu().double()
    return ((found.cpu().double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()


def worst_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of the relative errors of several tensors."""
    return max(relative_error(a, b) for a, b in zip(found, exact, strict=True))


def comparable(model: nn.Module) -> nn.Module:
    """A copy in training mode whose gradients can be compared to rounding.

    Dropout is off, for its masks are random, and SiLU stands for ReLU and LeakyReLU: a value that rounds to the other
    side of their kink changes the gradient by far more than rounding.
    """
    model = copy.deepcopy(model).train()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(parent, name, nn.SiLU())
            elif isinstance(child, nn.Dropout):
                child.eval()
    return model


def in_float64(module: nn.Module) -> nn.Module:
    """A copy in float64, on the CPU: other devices may lack it."""
    return copy.deepcopy(module).cpu().double()


def check_parity(
    found: Sequence[Tensor], stock: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype
) -> tuple[float, float]:
    """The worst error against float64, and PyTorch's.

    Args:
        found: our results.
        stock: PyTorch's, of the same call.
        exact: those in float64.
        dtype: that the call was computed in.

    Raises:
        ParityError: if a result has another shape or dtype than PyTorch's, or an error above twice PyTorch's and
            above the format's rounding.
    """
    for index, (ours, theirs) in enumerate(zip(found, stock, strict=True)):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise ParityError(
                f"result {index}: {tuple(ours.shape)} {ours.dtype}, expected {tuple(theirs.shape)} {theirs.dtype}"
            )
    for index, (ours, theirs, wanted) in enumerate(zip(found, stock, exact, strict=True)):
        error, own = relative_error(ours, wanted), relative_error(theirs, wanted)
        # Written so that NaN is refused.
        if not error <= max(2 * own, ROUNDING[dtype]):
            raise ParityError(f"result {index}: error {error:.1e} against float64, PyTorch's own is {own:.1e}")
    return worst_error(found, exact), worst_error(stock, exact)


def check_peer(name: str, found: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Refuses a peer that computes something else.

    Raises:
        ParityError: if a result has another shape than float64's, or is far from it.
    """
    for index, (theirs, wanted) in enumerate(zip(found, exact, strict=True)):
        if theirs.shape != wanted.shape:
            raise ParityError(f"{name}: result {index}: {tuple(theirs.shape)}, expected {tuple(wanted.shape)}")
        error = relative_error(theirs, wanted)
        if not error <= _OF_PEERS * ROUNDING[dtype]:
            raise ParityError(f"{name}: result {index}: error {error:.1e} against float64")
