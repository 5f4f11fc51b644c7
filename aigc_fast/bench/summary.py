"""What a whole run says: how much faster, op by op."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from aigc_fast.bench.runner import Result, Row
from aigc_fast.bench.tables import SLOWER
from aigc_fast.page import EVEN


@dataclass(frozen=True)
class Summary:
    """Of several rows.

    Attributes:
        rows: how many.
        speed: the geometric mean of the ratios to the fastest peers.
        least: the least of the ratios.
        faster: how many rows are faster than their fastest peer beyond `EVEN`.
        lost: how many are slower than `SLOWER` of it.
    """

    rows: int
    speed: float
    least: float
    faster: int
    lost: int


def summarised(rows: Iterable[Row]) -> Summary:
    """The summary of at least one row."""
    ratios = [row.ratio.median for row in rows]
    return Summary(
        len(ratios),
        statistics.geometric_mean(ratios),
        min(ratios),
        sum(ratio >= 1 + EVEN for ratio in ratios),
        sum(ratio < SLOWER for ratio in ratios),
    )


def by_op(result: Result) -> dict[str, list[Row]]:
    """The rows of each op."""
    found: dict[str, list[Row]] = {}
    for row in result.rows:
        found.setdefault(row.op, []).append(row)
    return found
