"""The demo's page: one HTML file with everything in it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from aigc_fast.cli.demo.compare import Comparison, Parity, Row
from aigc_fast.files import atomic
from aigc_fast.metrics import ImageReport, SoundReport, VideoReport
from aigc_fast.runtime.timing import Timing

IDEAL = "ideal"
_LEFT = ' class="text"'


@dataclass
class Page:
    """HTML, part after part.

    Attributes:
        title: of the page.
        lead: the paragraph under it.
        parts: the body's HTML; add to it.
    """

    title: str
    lead: str
    parts: list[str] = field(default_factory=list)

    def add(self, *parts: str) -> None:
        """Adds HTML."""
        self.parts.extend(parts)

    def heading(self, text: str, level: int = 2) -> None:
        """Adds a heading."""
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        """Adds a paragraph of plain text."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def html(self) -> str:
        """The whole document."""
        style = (files("aigc_fast.cli.demo") / "page.css").read_text(encoding="utf-8")
        body = "\n".join(self.parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f'<h1>{escape(self.title)}</h1>\n<p class="soft">{escape(self.lead)}</p>\n{body}\n</body>\n</html>\n'
        )

    def write(self, path: Path) -> None:
        """Writes the document, whole or not at all.

        Raises:
            UserError: when it can't be written.
        """
        with atomic(path) as temporary:
            # A path in it may hold bytes that are no text.
            temporary.write_text(self.html(), encoding="utf-8", errors="backslashreplace")


def picture(path: Path, caption: str) -> str:
    """An image file, which may be an APNG, embedded, with a caption."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def player(path: Path, caption: str) -> str:
    """A WAV file, embedded, under the picture that stands beside it, with a caption."""
    sound, image = (base64.b64encode(file.read_bytes()).decode() for file in (path, path.with_suffix(".png")))
    text = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="Spectrogram: {text}">'
        f'<audio controls src="data:audio/wav;base64,{sound}"></audio><figcaption>{text}</figcaption></figure>'
    )


def passage(path: Path, caption: str) -> str:
    """A text file with a caption."""
    text = escape(path.read_text(encoding="utf-8"))
    return f"<figure><pre>{text}</pre><figcaption>{escape(caption)}</figcaption></figure>"


def figures(parts: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>'


def cards(facts: Sequence[tuple[str, str]]) -> str:
    """Big figures with what they mean beneath."""
    inner = "".join(
        f'<div class="card"><b>{escape(figure)}</b><span>{escape(text)}</span></div>' for figure, text in facts
    )
    return f'<div class="cards">{inner}</div>'


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls sideways on a narrow screen; `rows` are HTML."""
    cells = "".join(f"<th{_LEFT if text == IDEAL else ''}>{escape(text)}</th>" for text in head)
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, the first of each row as code."""
    cells = "".join(f"<th{_LEFT}>{escape(text)}</th>" for text in head)
    lines = [
        f'<tr><td class="text"><code>{escape(first)}</code></td>'
        + "".join(f'<td class="text">{escape(text)}</td>' for text in others)
        + "</tr>"
        for first, *others in rows
    ]
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(lines)}</table></div>'


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(timing: Timing | None) -> str:
    if timing is None:
        return "–"
    return f"{_number(timing.median)} <small>({_number(timing.low)}–{_number(timing.high)})</small>"


def _ratio(row: Row) -> str:
    kind = "win" if row.ratio >= 1.03 else "loss" if row.ratio < 0.97 else "even"
    return f'<span class="{kind}">{row.ratio:.2f}×</span>'


def _error(value: float) -> str:
    # A hyphen that lines don't break at.
    return "exact" if value == 0 else f"{value:.0e}".replace("-", "\u2011")


def timing_table(rows: Sequence[Row]) -> str:
    """Stock PyTorch against aigc_fast, grouped."""
    head = (
        "milliseconds, median (quartiles)",
        "speed",
        "aigc_fast",
        "PyTorch",
        "PyTorch channels_last",
        "error (PyTorch's)",
    )
    lines, group = [], None
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(f'<tr class="group"><td colspan="{len(head)}">{escape(group)}</td></tr>')
        times = [_milliseconds(timing) for timing in (row.fast, row.stock, row.channels_last)]
        errors = f"{_error(row.error)} <small>({_error(row.stock_error)})</small>"
        lines.append(_row([escape(row.name), _ratio(row), *times, errors]))
    return table(head, lines)


def parity_cards(comparison: Comparison) -> str:
    """The figures that matter first."""
    parity = comparison.parity
    step, generation = comparison.rows[0], comparison.rows[1]
    return cards(
        [
            (f"{step.ratio:.2f}×", "training steps a second, against the faster of PyTorch's two layouts"),
            (f"{generation.ratio:.2f}×", "images generated a second, likewise"),
            (
                f"{parity.error:.0e}",
                f"largest relative error against float64; PyTorch's own is {parity.stock_error:.0e}",
            ),
            (_state_verdict(parity), "state_dict: names, order, values, and loading back into stock PyTorch"),
        ]
    )


def _state_verdict(parity: Parity) -> str:
    return "identical" if parity.same_keys and parity.same_values and parity.loads_back else "differs"


def metrics_table(
    reports: Mapping[str, ImageReport | SoundReport | VideoReport], rows: Sequence[tuple[str, str, str, str]]
) -> str:
    """The metrics of several models side by side, with what would be ideal; rows as those of `Medium`."""
    first = next(iter(reports.values())).as_dict()
    lines = []
    for label, name, form, ideal in rows:
        values = [form.format(getattr(report, name)) for report in reports.values()]
        cells = "".join(f"<td>{value}</td>" for value in values)
        lines.append(f'<tr><td>{label}</td>{cells}<td class="text">{escape(ideal.format(**first))}</td></tr>')
    return table(("", *reports, IDEAL), lines)
