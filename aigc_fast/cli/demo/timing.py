"""Fair timing: the candidates take turns, and the spread is told with the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

ROUNDS = 5
MAX_CALLS_PER_ROUND = 50


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call.

    Attributes:
        median: over all calls.
        low: first quartile.
        high: third quartile.
    """

    median: float
    low: float
    high: float


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float = 2.0) -> dict[str, Timing]:
    """Times several ways to do the same, in turns, so that a slow moment of the machine meets them all.

    Args:
        calls: what to time, by name.
        seconds: about how long the whole measurement takes; where that is too short, each is called a few times.

    Returns:
        A timing per name.
    """
    for call in calls.values():
        call()
    first = {name: _once(call) for name, call in calls.items()}
    rounds = max(1, min(ROUNDS, int(seconds / 2 / sum(first.values()))))
    share = seconds / rounds / len(calls)
    repeats = {name: max(2, min(MAX_CALLS_PER_ROUND, int(share / max(t, 1e-7)))) for name, t in first.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            samples[name] += [1e3 * _once(call) for _ in range(repeats[name])]
    return {name: _summary(found) for name, found in samples.items()}


def _summary(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)
