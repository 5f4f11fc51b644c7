"""Two runs of the bench side by side: what changed beyond noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aigc_fast.bench.runner import Result, Row
from aigc_fast.page import EVEN
from aigc_fast.runtime.timing import Timing

FASTER, SLOWER, WITH_PEER = "faster", "slower", "as its peer"

_FACTS = ("processor", "device", "level", "threads", "torch", "aigc_fast", "system")
# How much of our change the peer's must be, as logarithms, for the machine to have made it.
_SHARED = 0.5


@dataclass(frozen=True)
class Change:
    """A case that both runs measured.

    Attributes:
        before: its row in the earlier run.
        after: its row in this one.
        ours: how many times as fast our fastest way is now.
        peer: likewise, the fastest of the peers that both runs had; None where they had none in common.
        verdict: FASTER or SLOWER where ours changed beyond noise, WITH_PEER where its peer did alike, so that the
            machine has changed rather than the package, None where it did not.
    """

    before: Row
    after: Row
    ours: float
    peer: float | None
    verdict: str | None


@dataclass(frozen=True)
class Comparison:
    """What two runs say of each other.

    Attributes:
        changes: of the cases of both.
        only_before: labels of cases that only the earlier run measured.
        only_after: labels of those that only this one did.
        differing: what is not the same of the machines and versions, before and after.
    """

    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    differing: dict[str, tuple[Any, Any]]

    def beyond_noise(self) -> list[Change]:
        """The changes with a verdict, what became slower first."""
        return sorted((change for change in self.changes if change.verdict), key=lambda change: change.ours)


def compare(before: Result, after: Result) -> Comparison:
    """Compares runs, whose rows are matched by their labels.

    A change is beyond noise where the quartiles of both runs lie apart and the medians differ by more than 3%, and by
    more than twice what the peers, whose code is the same in both, scatter about their own median change.
    """
    old, new = ({row.label: row for row in result.rows} for result in (before, after))
    pairs = [(old[label], row) for label, row in new.items() if label in old]
    noise = max(math.log1p(EVEN), 2 * _scatter([found for found in (_of_peers(*pair) for pair in pairs) if found]))
    return Comparison(
        tuple(_change(*pair, noise) for pair in pairs),
        tuple(label for label in old if label not in new),
        tuple(label for label in new if label not in old),
        _differing(before.machine, after.machine),
    )


def _of_peers(before: Row, after: Row) -> float | None:
    """How many times as fast the fastest of the peers is that both rows have; None where they have none."""
    common = before.peers.keys() & after.peers.keys()
    if not common:
        return None
    return min(before.peers[name].median for name in common) / min(after.peers[name].median for name in common)


def _scatter(changes: Sequence[float]) -> float:
    """The median distance of changes, as logarithms, from their median."""
    logarithms = [math.log(change) for change in changes] or [0.0]
    middle = statistics.median(logarithms)
    return statistics.median(abs(value - middle) for value in logarithms)


def _change(before: Row, after: Row, noise: float) -> Change:
    was, now, peer = before.ours[before.way], after.ours[after.way], _of_peers(before, after)
    return Change(before, after, was.median / now.median, peer, _verdict(was, now, peer, noise))


def _verdict(was: Timing, now: Timing, peer: float | None, noise: float) -> str | None:
    ours = was.median / now.median
    apart = was.high < now.low or now.high < was.low
    if not apart or abs(math.log(ours)) <= noise:
        return None
    if peer is not None and math.log(peer) / math.log(ours) >= _SHARED:
        return WITH_PEER
    return FASTER if ours > 1 else SLOWER


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {fact: (before.get(fact), after.get(fact)) for fact in _FACTS if before.get(fact) != after.get(fact)}
