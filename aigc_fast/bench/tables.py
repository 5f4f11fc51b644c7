"""Tables in Markdown, from what a bench has found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aigc_fast.bench.machine import LIMITS, limits_text, machine_text
from aigc_fast.bench.runner import Result, Row
from aigc_fast.page import EVEN
from aigc_fast.runtime.timing import Timing
from aigc_fast.wording import three_digits

SLOWER = 1 - EVEN
"""The ratio to PyTorch below which a layout is told as slower."""
HEADINGS = ("", "", "aigc_fast, ms", "fastest peer, ms", "speed", "of the machine's limit", "error (PyTorch's)")
"""Of what `cells` says."""


def tables(results: Iterable[Result]) -> str:
    """A table for each op, under a line on the machine and what it could do."""
    return "\n\n".join(part for result in results for part in _tables_of(result))


def _tables_of(result: Result) -> list[str]:
    parts = [f"{machine_text(result.machine)}: {limits_text(result.limits)}."]
    for op in dict.fromkeys(row.op for row in result.rows):
        parts.append(f"`{op}`\n\n" + table(HEADINGS, (cells(row) for row in result.rows if row.op == op)))
    return parts


def table(headings: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(texts)} |" for texts in (headings, ["---"] * len(headings), *rows))


def cells(row: Row) -> tuple[str, ...]:
    """What a row says."""
    return (
        row.name,
        f"{row.dtype}, {row.mode}",
        spread(row.ours[row.way]),
        f"{spread(row.peers[row.peer])}, {row.peer}{without(row)}",
        speed(row),
        share(row),
        f"{row.error:.0e} ({row.own_error:.0e})",
    )


def without(row: Row) -> str:
    """Which peers are not installed."""
    return f"; without {', '.join(row.absent)}" if row.absent else ""


def speed(row: Row) -> str:
    """The ratio to the fastest peer with its spread, and that to PyTorch in a layout where it is the faster one."""
    slower = f"; {row.in_one_layout:.2f}× PyTorch in one layout" if row.in_one_layout < SLOWER else ""
    return f"{row.ratio.median:.2f}× ({row.ratio.low:.2f}-{row.ratio.high:.2f}){slower}"


def share(row: Row) -> str:
    """The share of the limit that was reached, and which limit it is; or the most memory that was taken."""
    if row.peak is not None:
        return f"memory at most {row.peak:.2f}× what is kept"
    return "" if row.share is None else f"{row.share:.0%}, {LIMITS[row.limit]}"


def spread(timing: Timing) -> str:
    """The median, and the quartiles in brackets."""
    return f"{three_digits(timing.median)} ({three_digits(timing.low)}-{three_digits(timing.high)})"
