"""The machine that is measured on, and what it can do at best, probed in the same run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aigc_fast import __version__
from aigc_fast.runtime import native

CACHED = 128 << 20
"""Bytes below which memory's bandwidth bounds nothing: caches are faster."""
_SIDE, _ELEMENTS = 1024, 48_000_000


def processor_name() -> str:
    """The processor's marketing name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def description() -> dict[str, str | int]:
    """What figures depend on, JSON-able."""
    return {
        "processor": processor_name(),
        "level": native.cpu.level or "none",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "aigc_fast": __version__,
        "system": platform.system(),
    }


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


def probe() -> dict[str, float]:
    """What the machine does at best, now: operations a second of matrix products, bytes a second of memory."""
    a, b = torch.randn(2, _SIDE, _SIDE).unbind()
    low, other = a.bfloat16(), b.bfloat16()
    large = torch.randn(_ELEMENTS)
    copy = torch.empty_like(large)
    operations = 2 * _SIDE**3
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
        found.append(time.perf_counter() - start)
    return min(found)
