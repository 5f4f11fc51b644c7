"""`aigc-fast bench`: this package against its peers, on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from aigc_fast.bench.calls import Case
from aigc_fast.bench.cases import CASES, OPS
from aigc_fast.bench.comparison import Comparison, compare
from aigc_fast.bench.machine import limits_text, machine_text
from aigc_fast.bench.page import page_of
from aigc_fast.bench.parity import ParityError
from aigc_fast.bench.peers import missing
from aigc_fast.bench.runner import Result, Row, merged, run
from aigc_fast.bench.selection import kept_in, selected
from aigc_fast.bench.summary import by_op, summarised
from aigc_fast.bench.tables import share as share_text
from aigc_fast.bench.tables import speed, without
from aigc_fast.cli.app import console
from aigc_fast.cli.options import Device, Overwrite, chosen_device, new_files, with_default
from aigc_fast.cli.sharing import installation, scrubbed
from aigc_fast.errors import UserError
from aigc_fast.files import atomic, make_folder
from aigc_fast.wording import counted, three_digits

_DTYPES = tuple(dict.fromkeys(case.dtype for case in CASES))

Op = Annotated[
    list[str] | None,
    typer.Option(
        "--op",
        metavar="OP",
        help=with_default(f"Only this one, with all its rows; may come again: {', '.join(OPS)}.", "all of layers"),
        show_default=False,
    ),
]
Only = Annotated[str, typer.Option(metavar="TEXT", help="Only rows whose label holds it.")]
Dtype = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype", metavar="DTYPE", help=f"Only this one; may come again: {', '.join(_DTYPES)}.", show_default=False
    ),
]
Models = Annotated[bool, typer.Option("--models", help="Whole models too: training steps and generation.")]
Every = Annotated[bool, typer.Option("--all", help="Every row, rather than those that the README shows; half an hour.")]
Threads = Annotated[int | None, typer.Option(min=1, help="PyTorch's, and the kernels'.", show_default=False)]
Seconds = Annotated[float, typer.Option(min=0.01, max=60, help="Time to measure each row for.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results.", show_default=False)]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with charts and a roofline.", show_default=False),
]
Earlier = Annotated[
    Path | None,
    typer.Option("--compare", metavar="FILE", help="Tell what changed since an earlier --json.", show_default=False),
]
Share = Annotated[
    Path | None,
    typer.Option(
        "--share",
        metavar="FILE",
        help="Write results, machine and versions to attach to a report: no paths, no names.",
        show_default=False,
    ),
]
Shown = Annotated[
    list[Path] | None,
    typer.Option(
        "--from", metavar="FILE", help="Measure nothing, show what --json wrote; may come again.", show_default=False
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep the results of each op in a file by machine.", show_default=False),
]


def _checked(option: str, given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    for value in given or ():
        if value not in known:
            raise UserError(f"{option} {value}: expected one of {', '.join(known)}")
    return tuple(given or ())


class _Teller:
    """Prints a table for each op, once its rows are there."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(self, row: Row | str) -> None:
        if isinstance(row, str):
            console.print(row, soft_wrap=True)
            return
        if self.rows and self.rows[-1].op != row.op:
            self.end()
        self.rows.append(row)

    def end(self) -> None:
        """Prints what is left."""
        if not self.rows:
            return
        table = Table(title=self.rows[0].op, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in ("", "aigc_fast, ms", "fastest peer, ms", "speed", "of limit"):
            table.add_column(heading, justify="right" if "aigc_fast" in heading else "left", overflow="fold")
        for row in self.rows:
            ours, peer = row.ours[row.way].median, row.peers[row.peer].median
            table.add_row(
                f"{row.name}, {row.dtype}, {row.mode}",
                three_digits(ours),
                f"{three_digits(peer)}, {row.peer}{without(row)}",
                speed(row),
                share_text(row),
            )
        console.print(table)
        self.rows = []


def _measured(cases: Sequence[Case], seconds: float, device: torch.device, keep: Path | None, whole: bool) -> Result:
    """Runs cases; with a folder to keep results in, a run for each of its files."""
    parts = {None: list(cases)} if keep is None else kept_in(make_folder(keep), cases, device)
    results, tell = [], _Teller()
    for path, part in parts.items():
        with console.status(f"measuring {counted(len(part), 'cases')}"):
            results.append(run(part, seconds, tell, device))
        tell.end()
        if not results[-1].complete:
            console.print("interrupted: these are the rows until now")
            break
        if path is not None and whole:
            results[-1].write(path)
    return merged(results)


def _tell(result: Result) -> None:
    console.print(f"{machine_text(result.machine)}: {limits_text(result.limits)}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("op", "rows", "speed, mean", "least", "faster", "slower"):
        table.add_column(heading, justify="left" if heading == "op" else "right")
    groups = by_op(result)
    for name, rows in ({**groups, "all": list(result.rows)} if len(groups) > 1 else groups).items():
        found = summarised(rows)
        table.add_row(
            name, str(found.rows), f"{found.speed:.2f}×", f"{found.least:.2f}×", str(found.faster), str(found.lost)
        )
    console.print(table)


def _tell_changes(comparison: Comparison) -> None:
    for fact, (before, after) in comparison.differing.items():
        console.print(f"{fact}: {before} before, {after} now", soft_wrap=True)
    changed = comparison.beyond_noise()
    console.print(
        f"{len(changed)} of {counted(len(comparison.changes), 'rows')} changed beyond noise; "
        f"{len(comparison.only_before)} were measured before only, {len(comparison.only_after)} now only",
        soft_wrap=True,
    )
    for change in changed:
        was, now = change.before.ours[change.before.way].median, change.after.ours[change.after.way].median
        peer = "" if change.peer is None else f", its peer {change.peer:.2f}×"
        console.print(
            f"  {change.after.label}: {change.verdict}: {three_digits(was)} ms before, {three_digits(now)} now, "
            f"{change.ours:.2f}×{peer}",
            soft_wrap=True,
        )


def _share(result: Result, path: Path) -> None:
    with atomic(path) as temporary:
        content = {**scrubbed(asdict(result)), "installation": installation()}
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def bench(
    op: Op = None,
    only: Only = "",
    dtype: Dtype = None,
    models: Models = False,
    every: Every = False,
    device: Device = None,
    threads: Threads = None,
    seconds: Seconds = 1.0,
    json_file: Json = None,
    html: Html = None,
    earlier: Earlier = None,
    share: Share = None,
    shown: Shown = None,
    keep: Keep = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure this package against PyTorch and other peers that are installed, on this machine.

    Some two minutes, unless --models, --all or --seconds ask for more. Each result is held to float64 before anything
    is timed. Ours and all peers take turns; the median counts, with its quartiles. Rows that are slower stay.

    Example:  aigc-fast bench --op attention --html out/bench.html
    """
    ops, dtypes = _checked("--op", op, OPS), _checked("--dtype", dtype, _DTYPES)
    new_files(overwrite, {"--json": json_file, "--html": html, "--share": share})
    before = None if earlier is None else Result.read(earlier)
    if threads:
        torch.set_num_threads(threads)
    if shown:
        result, tell = merged([Result.read(path) for path in shown]), _Teller()
        for row in result.rows:
            tell(row)
        tell.end()
    else:
        cases = selected(ops, only, dtypes, models, every)
        result = _run(cases, seconds, chosen_device(device), keep, not (only or dtypes))
    if not result.rows:
        absent = " ".join(missing())
        wanted = f"a peer is not installed (pip install {absent}), or " if absent else ""
        raise UserError(f"no row was measured: {wanted}no case is of this device")
    _tell(result)
    comparison = None if before is None else compare(before, result)
    if comparison is not None:
        _tell_changes(comparison)
    if json_file:
        result.write(json_file)
    if share:
        _share(result, share)
    if html:
        page_of(result, comparison).write(html)


def _run(cases: Sequence[Case], seconds: float, device: torch.device, keep: Path | None, whole: bool) -> Result:
    if not cases:
        raise UserError("no row is asked for: --op, --only and --dtype have none in common")
    try:
        return _measured(cases, seconds, device, keep, whole)
    except ParityError as error:
        console.print(f"aigc-fast: wrong result: {error}", soft_wrap=True, style="bold")
        console.print("Nothing more is timed. Please report it, with: aigc-fast doctor --report", soft_wrap=True)
        raise typer.Exit(1) from None
