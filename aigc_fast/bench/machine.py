"""The machine that is measured on, and what it can do at best, probed in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from aigc_fast.runtime.timing import wait

CACHED = 128 << 20
"""Bytes below which memory's bandwidth bounds nothing: caches are faster."""
CPU = torch.device("cpu")
LIMITS = {
    "gemm_float32": "matrix products",
    "gemm_bfloat16": "matrix products",
    "read": "reading memory",
    "copy": "copying memory",
}
"""What the limits are of, by their names."""
_SIDE, _SIDE_OF_ACCELERATORS, _ELEMENTS = 1024, 8192, 48_000_000


@dataclass(frozen=True)
class Work:
    """What a call takes at least of what the machine is limited in.

    Attributes:
        limit: a key of `probe`'s answer.
        amount: floating-point operations, or bytes.
    """

    limit: str
    amount: float

    def share(self, milliseconds: float, limits: dict[str, float]) -> float:
        """The share of the limit that a call of so many milliseconds reaches."""
        return self.amount / (1e-3 * milliseconds) / limits[self.limit]


def products(dtype: torch.dtype, operations: float) -> Work:
    """Work of matrix products."""
    return Work("gemm_bfloat16" if dtype == torch.bfloat16 else "gemm_float32", operations)


def traffic(kind: str, size: float) -> Work | None:
    """Work of memory; None where it stays in caches.

    Args:
        kind: "read" or "copy".
        size: bytes.
    """
    return Work(kind, size) if size >= CACHED else None


def placed(device: torch.device) -> AbstractContextManager[object]:
    """Has tensors made on a device; on the CPU, where they are anyway, no mode slows calls down."""
    return nullcontext() if device.type == "cpu" else device


def described(device: torch.device) -> dict[str, str]:
    """The device's name, where it is not the processor."""
    if device.type == "cpu":
        return {}
    return {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}


def probe() -> dict[str, float]:
    """What the default device does at best, now: operations a second of matrix products, bytes a second of memory."""
    side = _SIDE if torch.get_default_device().type == "cpu" else _SIDE_OF_ACCELERATORS
    a, b = torch.randn(2, side, side).unbind()
    low, other = a.bfloat16(), b.bfloat16()
    large = torch.randn(_ELEMENTS)
    copy = torch.empty_like(large)
    operations = 2 * side**3
    return {
        "gemm_float32": operations / _fastest(lambda: torch.mm(a, b)),
        "gemm_bfloat16": operations / _fastest(lambda: torch.mm(low, other)),
        "read": large.nbytes / _fastest(large.sum),
        "copy": 2 * large.nbytes / _fastest(lambda: copy.copy_(large)),
    }


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls."""
    found = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
    return min(found)


def machine_text(machine: Mapping[str, Any]) -> str:
    """What was measured: the machine and the versions."""
    what = f"{machine['processor']}, {machine['level']}, {machine['threads']} threads"
    return f"{machine.get('device', what)}, torch {machine['torch']}, aigc_fast {machine['aigc_fast']}"


def limits_text(limits: Mapping[str, float]) -> str:
    """What the machine could do at best in that run."""
    products = " and ".join(f"{limits[f'gemm_{dtype}'] / 1e9:.0f} in {dtype}" for dtype in ("float32", "bfloat16"))
    return (
        f"{products} GFLOP/s of matrix products, {limits['read'] / 1e9:.1f} GB/s read, "
        f"{limits['copy'] / 1e9:.1f} copied"
    )
