"""Fair timing: the candidates take turns, and the spread is told with the median."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

ROUNDS = 5
MAX_CALLS_PER_ROUND = 50


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, or another figure with its spread.

    Attributes:
        median: over all calls.
        low: first quartile.
        high: third quartile.
    """

    median: float
    low: float
    high: float


def wait() -> None:
    """Until an accelerator, where there is one, has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float = 2.0) -> dict[str, Timing]:
    """Times several ways to do the same, in turns, so that a slow moment of the machine meets them all.

    Args:
        calls: what to time, by name.
        seconds: about how long the whole measurement takes; where that is too short, each is called a few times.

    Returns:
        A timing per name.
    """
    return {name: summary(itertools.chain(*rounds)) for name, rounds in rounds_of(calls, seconds).items()}


def rounds_of(
    calls: Mapping[str, Callable[[], object]], seconds: float, pause: float = 0.0, least: int = 1
) -> dict[str, list[list[float]]]:
    """The milliseconds of each call in each round of `interleaved`, by name.

    Args:
        calls: as for `interleaved`.
        seconds: likewise.
        pause: seconds before each turn, for threads of the one before that still wait for work and hold a core.
        least: rounds, however long they take: of one alone a slow moment may meet one call and not the others.
    """
    for call in calls.values():
        call()
    first = {name: _once(call) for name, call in calls.items()}
    rounds = max(least, min(ROUNDS, int(seconds / 2 / sum(first.values()))))
    share = seconds / rounds / len(calls)
    repeats = {name: max(2, min(MAX_CALLS_PER_ROUND, int(share / max(t, 1e-7)))) for name, t in first.items()}
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if pause:
                time.sleep(pause)
            call()
            found[name].append([1e3 * _once(call) for _ in range(repeats[name])])
    return found


def summary(samples: Iterable[float]) -> Timing:
    """The median and the quartiles of samples; of one, that one."""
    samples = list(samples)
    low, median, high = statistics.quantiles(samples if len(samples) > 1 else 2 * samples, n=4, method="inclusive")
    return Timing(median, low, high)
