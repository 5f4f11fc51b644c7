"""A run of the bench as a page: charts, what changed, and every row."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from aigc_fast.bench.comparison import Comparison
from aigc_fast.bench.machine import limits_text, machine_text
from aigc_fast.bench.runner import Result, Row
from aigc_fast.bench.speed import TITLES
from aigc_fast.bench.summary import by_op, summarised
from aigc_fast.bench.tables import HEADINGS, share, without
from aigc_fast.page import Page, cards, error, group, milliseconds, ratio, row, table
from aigc_fast.page.chart import Dot, Interval, interval_chart, roofline

_MOST_IN_CHART = 60


def page_of(result: Result, comparison: Comparison | None = None) -> Page:
    """The page of a run with at least one row.

    Args:
        result: the run.
        comparison: with an earlier one.
    """
    machine = result.machine
    page = Page(
        "aigc_fast: bench",
        f"{machine_text(machine)}; {machine['date']}. Ours and all peers in turns, each result held to float64 first.",
    )
    _add_cards(page, result)
    _add_charts(page, result)
    if comparison is not None:
        _add_comparison(page, comparison)
    _add_rows(page, result)
    peers = ", ".join(f"{name} {version}" for name, version in machine.get("peers", {}).items())
    page.paragraph(f"The machine reached {limits_text(result.limits)}. Peers besides PyTorch: {peers or 'none'}.")
    return page


def _add_cards(page: Page, result: Result) -> None:
    whole = summarised(result.rows)
    page.add(
        cards(
            [
                (f"{whole.speed:.2f}×", "the fastest peer's speed, geometric mean of all rows"),
                (f"{whole.faster} of {whole.rows}", "rows are faster than their fastest peer"),
                (str(whole.lost), "rows are slower: they stay in the table"),
                (f"{max(row.error for row in result.rows):.0e}", "largest relative error against float64"),
            ]
        )
    )


def _add_charts(page: Page, result: Result) -> None:
    page.heading("Against the fastest peer")
    ops = by_op(result)
    if len(ops) > 1:
        page.add(op_chart(result))
    for op, rows in ops.items():
        each = [Interval(_short(line), line.ratio.median, line.ratio.low, line.ratio.high) for line in rows]
        caption = f"{_title(op)}: speed of each row, with its quartiles over the rounds."
        page.add(interval_chart(sorted(each, key=lambda line: -line.median)[:_MOST_IN_CHART], caption))
    if any(line.operations for line in result.rows):
        page.heading("Against the machine's limit")
        page.paragraph(
            "Each call by the operations that it makes for each byte that it reads or writes at least once, and by the "
            "operations a second that it reaches: filled ours, hollow the fastest peer. Under the slope memory is the "
            "limit, under the flat roofs the processor; what stays in caches can lie above the slope, and an algorithm "
            "that multiplies less, as Winograd's, above a roof."
        )
        page.add(roofline_of(result))


def op_chart(result: Result) -> str:
    """The speed of each op, as a figure."""
    means = [Interval(_title(op), *_mean_and_range(rows)) for op, rows in by_op(result).items()]
    return interval_chart(means, "Speed by op: the geometric mean of its rows, from the least to the largest.")


def roofline_of(result: Result) -> str:
    """The rows whose work is counted, at least one, as a figure."""
    ops = by_op(result)
    roofs = {f"products in {dtype}": result.limits[f"gemm_{dtype}"] for dtype in ("float32", "bfloat16")}
    counted = [_title(op) for op, rows in ops.items() if any(line.operations for line in rows)]
    caption = f"Roofline: {limits_text(result.limits)}."
    return roofline(list(_dots(ops)), roofs, result.limits["read"], counted, caption)


def _mean_and_range(rows: list[Row]) -> tuple[float, float, float]:
    ratios = [line.ratio.median for line in rows]
    return summarised(rows).speed, min(ratios), max(ratios)


def _dots(ops: dict[str, list[Row]]) -> Iterator[Dot]:
    counted = {op: [line for line in rows if line.operations and line.nbytes] for op, rows in ops.items()}
    for series, rows in enumerate(filter(None, counted.values())):
        for line in rows:
            intensity = line.operations / line.nbytes
            for timings, way, filled in ((line.ours, line.way, True), (line.peers, line.peer, False)):
                speed = line.operations / (1e-3 * timings[way].median)
                yield Dot(f"{line.label}, {way}: {speed / 1e9:.3g} GFLOP/s", intensity, speed, series, filled)


def _title(op: str) -> str:
    return TITLES[op][0] if op in TITLES else op


def _short(line: Row) -> str:
    return f"{line.name}, {line.dtype}, {line.mode}"


def _add_comparison(page: Page, comparison: Comparison) -> None:
    page.heading("Since the earlier run")
    for fact, (before, after) in comparison.differing.items():
        page.paragraph(f"{fact}: {before} before, {after} now.")
    changed = comparison.beyond_noise()
    page.paragraph(
        f"{len(changed)} of {len(comparison.changes)} rows changed beyond noise: the quartiles of both runs lie apart. "
        "Where the peer changed alike, it is the machine that did."
    )
    if changed:
        lines = (
            row(
                [
                    escape(change.after.label),
                    milliseconds(change.before.ours[change.before.way]),
                    milliseconds(change.after.ours[change.after.way]),
                    ratio(change.ours),
                    "–" if change.peer is None else f"{change.peer:.2f}×",
                    escape(change.verdict or ""),
                ]
            )
            for change in changed
        )
        page.add(table(("", "before, ms", "now, ms", "as fast", "its peer", "verdict"), lines))


def _add_rows(page: Page, result: Result) -> None:
    page.heading("Every row")
    lines = []
    for op, rows in by_op(result).items():
        lines.append(group(_title(op), len(HEADINGS)))
        lines += map(_line, rows)
    page.add(table(HEADINGS, lines))


def _line(line: Row) -> str:
    slowest = f" <small>{line.in_one_layout:.2f}× in one layout</small>" if line.in_one_layout < 1 else ""
    spread = f" <small>({line.ratio.low:.2f}–{line.ratio.high:.2f})</small>"
    return row(
        [
            escape(line.name),
            escape(f"{line.dtype}, {line.mode}"),
            milliseconds(line.ours[line.way]),
            f"{milliseconds(line.peers[line.peer])}, {escape(line.peer + without(line))}",
            ratio(line.ratio.median) + spread + slowest,
            escape(share(line)),
            f"{error(line.error)} <small>({error(line.own_error)})</small>",
        ]
    )
