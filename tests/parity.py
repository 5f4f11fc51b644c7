"""How results are compared: relative errors, PyTorch's own as the measure, and each format's rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Relative error below which two results are the same in that format, whatever PyTorch's own error is.
FLOORS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
# How many roundings of its inputs a result may be off.
ROUNDINGS = 8
# Of a gradient of fewer most may cancel out, or roundings be lucky: its error is that of all gradients together.
FEW_NUMBERS = 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def relative_error(value: Tensor, reference: Tensor) -> float:
    """The Frobenius norm of the difference over the reference's, in float64."""
    value, reference = value.detach().double(), reference.detach().double()
    return ((value - reference).norm() / reference.norm().clamp_min(1e-30)).item()


def assert_parity(
    ours: Tensor,
    theirs: Tensor,
    reference: Tensor,
    name: str = "output",
    nearby: Tensor | None = None,
    floor: float | None = None,
) -> None:
    """Ours may be at most twice as far from float64 as PyTorch is, with a floor at the format's own rounding.

    Args:
        ours, theirs, reference: results; the reference's in float64.
        name: for the message.
        nearby: the reference of inputs that are a rounding of float32 away, where results are ill-conditioned: ours
            may be some such roundings off.
        floor: in place of FLOORS.
    """
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, PyTorch's is {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, PyTorch's is {theirs.dtype}"
    if not ours.numel():
        return
    found, allowed = relative_error(ours, reference), relative_error(theirs, reference)
    limit = max(2 * allowed, FLOORS[ours.dtype] if floor is None else floor)
    if nearby is not None:
        limit = max(limit, ROUNDINGS * relative_error(nearby, reference))
    assert found <= limit, f"{name}: error {found:.2e} against float64, PyTorch's own is {allowed:.2e}"


@contextmanager
def float32_precision(level: str) -> Iterator[None]:
    """Sets PyTorch's switch inside a `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def opcheck(op: torch._ops.OpOverload, arguments: tuple[Any, ...]) -> None:
    """`torch.library.opcheck`, whose own warnings, other ones in every version of torch, are no faults of the op."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(op, arguments)
