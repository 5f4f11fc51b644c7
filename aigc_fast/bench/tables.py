"""Tables in Markdown, from what a bench has found."""

from __future__ import annotations

from collections.abc import Iterable

from aigc_fast.bench.runner import Result, Row
from aigc_fast.runtime.timing import Timing

LIMITS = {
    "gemm_float32": "matrix products",
    "gemm_bfloat16": "matrix products",
    "read": "reading memory",
    "copy": "copying memory",
}
SLOWER = 0.97
"""The ratio to PyTorch below which a layout is told as slower."""
_HEADINGS = ("", "", "aigc_fast, ms", "fastest peer, ms", "speed", "of the machine's limit", "error (PyTorch's)")


def tables(results: Iterable[Result]) -> str:
    """A table for each op, under a line on the machine and what it could do."""
    return "\n\n".join(part for result in results for part in _tables_of(result))


def _tables_of(result: Result) -> list[str]:
    machine, limits = result.machine, result.limits
    products = " and ".join(f"{limits[f'gemm_{dtype}'] / 1e9:.0f} in {dtype}" for dtype in ("float32", "bfloat16"))
    parts = [
        f"{machine['processor']}, {machine['level']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"aigc_fast {machine['aigc_fast']}: {products} GFLOP/s of matrix products, {limits['read'] / 1e9:.1f} GB/s "
        f"read, {limits['copy'] / 1e9:.1f} copied."
    ]
    for op in dict.fromkeys(row.op for row in result.rows):
        lines = [_line(_HEADINGS), _line("---" for _ in _HEADINGS)]
        lines += [_line(cells(row)) for row in result.rows if row.op == op]
        parts.append(f"`{op}`\n\n" + "\n".join(lines))
    return parts


def cells(row: Row) -> tuple[str, ...]:
    """What a row says."""
    share = "" if row.share is None else f"{row.share:.0%}, {LIMITS[row.limit]}"
    slower = f"; {row.in_one_layout:.2f}× PyTorch in one layout" if row.in_one_layout < SLOWER else ""
    without = f"; without {', '.join(row.absent)}" if row.absent else ""
    return (
        row.name,
        f"{row.dtype}, {row.mode}",
        spread(row.ours[row.way]),
        f"{spread(row.peers[row.peer])}, {row.peer}{without}",
        f"{row.ratio.median:.2f}× ({row.ratio.low:.2f}-{row.ratio.high:.2f}){slower}",
        share,
        f"{row.error:.0e} ({row.own_error:.0e})",
    )


def spread(timing: Timing) -> str:
    """The median, and the quartiles in brackets."""
    return f"{_number(timing.median)} ({_number(timing.low)}-{_number(timing.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"
