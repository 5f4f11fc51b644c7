"""What a profile has found, as a table and as a page."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from aigc_fast.optimize.reporting import Entry, Report
from aigc_fast.page import Page, cards, details, ratio, row, table
from aigc_fast.page.chart import Interval, interval_chart
from aigc_fast.runtime.timing import Timing
from aigc_fast.wording import counted, three_digits

PYTORCH, OURS = "PyTorch", "aigc_fast"
SHOWN = 20
"""How many modules the table shows."""

_WIDTH = 120
_LEAST_NAME = 10
# A line break is where a narrow terminal needs one.
_HEADINGS = (
    "module",
    "type",
    "calls",
    "forward,\nms",
    "itself",
    "backward,\nms",
    "of\nall",
    "of\nlimit",
    "with\naigc_fast",
)


@dataclass(frozen=True)
class ModuleTimes:
    """Where a module's time goes, in milliseconds of a step.

    Attributes:
        name: after its model's type.
        kind: its class.
        calls: in a step.
        forward: with the modules in it.
        own: without them.
        backward: of what it computes itself.
        share: of the time of all modules, forward and backward.
        of_limit: the share of the machine's rate of matrix products that forward reaches; None where nothing is
            counted.
        twin: what became of it in a copy that was optimised; None where there is no faster way to ask for.
    """

    name: str
    kind: str
    calls: float
    forward: float
    own: float
    backward: float
    share: float
    of_limit: float | None = None
    twin: Entry | None = None

    @property
    def gain(self) -> float:
        """Milliseconds that its twin saves in a call."""
        twin = self.twin
        return twin.torch_ms - twin.fast_ms if twin and twin.swapped and twin.torch_ms is not None else 0.0


@dataclass(frozen=True)
class Profile:
    """Where a model's time goes and what would be faster; `print` it for a table.

    Attributes:
        title: what was profiled.
        machine: what it ran on, with the machine's limits.
        modules: the slowest first.
        reports: by the name of each model: which layers have a faster twin, what it gains, what stays and why.
        whole: milliseconds of the whole model by what is done, "forward" or "training step", then by "PyTorch" and
            "aigc_fast", measured in turns; empty for a script.
        phases: milliseconds of a step of a script by what it does; empty for a model.
        steps: of a script, how many were recorded; of a model, whose times are medians, 1.
    """

    title: str
    machine: str
    modules: tuple[ModuleTimes, ...]
    reports: dict[str, Report]
    whole: dict[str, dict[str, Timing]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    steps: int = 1

    @property
    def gains(self) -> float:
        """Milliseconds of a step that the faster twins save, as measured one by one."""
        return sum(module.gain * module.calls for module in self.modules)

    def __str__(self) -> str:
        output = Console(file=io.StringIO(), width=_WIDTH, highlight=False, markup=False)
        output.print(self)
        return output.file.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.title
        yield self.machine
        yield from self._whole_texts()
        yield ""
        yield self._table()
        left_out = len(self.modules) - SHOWN
        if left_out > 0:
            yield f"and {left_out} that take less"
        yield ""
        yield from self.reasons()

    def _whole_texts(self) -> Iterator[str]:
        for name, ways in self.whole.items():
            text = ", ".join(f"{way} {three_digits(timing.median)} ms" for way, timing in ways.items())
            faster = f": {ways[PYTORCH].median / ways[OURS].median:.2f}× after optimize" if OURS in ways else ""
            yield f"{name}: {text}{faster}"
        if self.phases:
            text = ", ".join(f"{name} {three_digits(taken)} ms" for name, taken in self.phases.items())
            yield f"a step of {self.steps}: {text}"
            yield f"the faster twins save {three_digits(self.gains)} ms of it"

    def _table(self) -> Table:
        found = Table(box=None, padding=(0, 1, 0, 0))
        for heading in _HEADINGS:
            words = heading in ("module", "type", _HEADINGS[-1])
            breaks = heading == "module"
            found.add_column(
                heading,
                justify="left" if words else "right",
                overflow="fold",
                no_wrap=not breaks,
                min_width=_LEAST_NAME if breaks else None,
            )
        for module in self.modules[:SHOWN]:
            found.add_row(*_cells(module))
        return found

    def reasons(self) -> Iterator[str]:
        """Lines on what stays PyTorch's, and why."""
        for model, report in self.reports.items():
            timed = [entry for entry in report.layers if entry.torch_ms is not None]
            faster = sum(entry.swapped for entry in timed)
            unseen = sum(entry.torch_ms is None and entry.swapped for entry in report.layers)
            untimed = f"; {unseen} were not called by themselves, and not timed" if unseen else ""
            yield f"{model}: {faster} of {counted(len(report.layers), 'layers')} have a faster twin here{untimed}"
            why: dict[str, list[str]] = {}
            for entry in (*report.left, *(entry for entry in report.fused if not entry.swapped)):
                why.setdefault(entry.note or "", []).append(entry.name)
            for note, names in why.items():
                yield f"  stays: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}: {note}"
            if report.others:
                others = ", ".join(f"{count} {name}" for name, count in sorted(report.others.items()))
                yield f"  no drop-in for: {others}"

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page with everything in it.

        Raises:
            UserError: when it can't be written.
        """
        self.page().write(Path(path))

    def page(self) -> Page:
        """The page of `write_html`."""
        page = Page(f"Profile of {self.title}", self.machine)
        facts = [
            (f"{ways[PYTORCH].median / ways[OURS].median:.2f}×", f"{name} after aigc_fast.optimize, measured in turns")
            for name, ways in self.whole.items()
            if OURS in ways
        ]
        facts += [(f"{three_digits(taken)} ms", f"{name}, of each step") for name, taken in self.phases.items()]
        facts.append((f"{three_digits(self.gains)} ms", "of a step saved by the faster twins, measured one by one"))
        page.add(cards(facts))
        twins = [
            Interval(module.name, *3 * [module.twin.torch_ms / module.twin.fast_ms])
            for module in self.modules
            if module.twin and module.twin.torch_ms
        ]
        if twins:
            page.heading("Layers that have a twin")
            page.add(
                interval_chart(twins[: 3 * SHOWN], "Speed of each layer's twin against PyTorch's, in its own calls.")
            )
        page.heading("Where the time goes")
        page.add(table(_HEADINGS, (row(map(_html, _cells(module))) for module in self.modules)))
        page.heading("What stays, and why")
        page.add("<pre>" + escape("\n".join(self.reasons())) + "</pre>")
        for model, report in self.reports.items():
            page.add(details(f"aigc_fast.report({model})", str(report)))
        return page


def _cells(module: ModuleTimes) -> tuple[str, ...]:
    return (
        module.name,
        module.kind,
        f"{module.calls:g}",
        three_digits(module.forward),
        three_digits(module.own),
        three_digits(module.backward) if module.backward else "",
        f"{module.share:.0%}",
        "" if module.of_limit is None else f"{module.of_limit:.0%}",
        _twin(module.twin),
    )


def _twin(twin: Entry | None) -> str:
    if twin is None:
        return ""
    if twin.torch_ms is None:
        return twin.note or ("swapped" if twin.swapped else "")
    speed = f"{twin.torch_ms / twin.fast_ms:.2f}×"
    return speed if twin.swapped else f"{speed}, stays"


def _html(cell: str) -> str:
    if cell.endswith("×"):
        return ratio(float(cell[:-1]))
    return escape(cell)
