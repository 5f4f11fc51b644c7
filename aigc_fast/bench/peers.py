"""Other packages that do the same: None where one is not installed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

COMPILE = "AIGC_FAST_BENCH_COMPILE"
"""The environment variable that, set to 1, lets torch.compile take part: it takes seconds a line."""

Recur = Callable[[Tensor, Tensor], Tensor]


def optional(name: str) -> ModuleType | None:
    """A module, None where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def present(ways: dict[str, Any]) -> dict[str, Any]:
    """Those that there are."""
    return {name: way for name, way in ways.items() if way is not None}


def compiled(call: Callable[[], Any]) -> Callable[[], Any] | None:
    """The call by torch.compile, where that was asked for."""
    return torch.compile(call) if os.environ.get(COMPILE) == "1" else None


def torchlpc(varying: bool) -> Recur | None:
    """torchlpc's recursion: of coefficients of every step, in its own sign, or of one for all, in ours."""
    module = optional("torchlpc")
    if module is None:
        return None
    if varying:
        return module.sample_wise_lpc
    return lambda x, coeffs: module.sample_wise_lpc(x, (-coeffs).expand(*x.shape, coeffs.shape[-1]))


def scipy_lfilter() -> Recur | None:
    """scipy's filter, of one filter for all."""
    module = optional("scipy.signal")
    if module is None:
        return None

    def lfilter(x: Tensor, coeffs: Tensor) -> Tensor:
        denominator = torch.cat([coeffs.new_ones(1), -coeffs]).numpy()
        return torch.from_numpy(module.lfilter(coeffs.new_ones(1).numpy(), denominator, x.numpy()))

    return lfilter


def sample_wise(varying: bool) -> Recur:
    """The recursion as a loop over PyTorch's operators, with gradients: what is right, and slow."""

    def loop(x: Tensor, coeffs: Tensor) -> Tensor:
        order = coeffs.shape[-1]
        own = -coeffs if varying else coeffs
        outputs = [torch.zeros_like(x[:, 0])] * order
        for step in range(x.shape[1]):
            before = torch.stack(outputs[: -order - 1 : -1], -1)
            outputs.append(x[:, step] + (before * (own[:, step] if varying else own)).sum(-1))
        return torch.stack(outputs[order:], 1)

    return loop
