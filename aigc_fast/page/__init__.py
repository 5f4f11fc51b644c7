"""Pages that a person looks at: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from aigc_fast.files import atomic
from aigc_fast.page.chart import EVEN, verdict
from aigc_fast.runtime.timing import Timing
from aigc_fast.wording import three_digits

__all__ = [
    "EVEN",
    "Page",
    "cards",
    "details",
    "error",
    "figures",
    "group",
    "milliseconds",
    "ratio",
    "row",
    "table",
    "text_table",
]

_STYLES = "chart", "page"
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
        style = "".join((files("aigc_fast.page") / f"{name}.css").read_text(encoding="utf-8") for name in _STYLES)
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


def figures(parts: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>'


def cards(facts: Sequence[tuple[str, str]]) -> str:
    """Big figures with what they mean beneath."""
    inner = "".join(
        f'<div class="card"><b>{escape(figure)}</b><span>{escape(text)}</span></div>' for figure, text in facts
    )
    return f'<div class="cards">{inner}</div>'


def details(summary: str, text: str) -> str:
    """Plain text that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def table(head: Sequence[str], rows: Iterable[str], words: Sequence[str] = ()) -> str:
    """A table that scrolls sideways on a narrow screen.

    Args:
        head: what stands over the columns.
        rows: as HTML.
        words: those of the columns that hold words, which stand left.
    """
    cells = "".join(f"<th{_LEFT if text in words else ''}>{escape(text)}</th>" for text in head)
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def row(cells: Iterable[str]) -> str:
    """A table's row of HTML cells."""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def group(text: str, columns: int) -> str:
    """A table's row that heads those that follow."""
    return f'<tr class="group"><td colspan="{columns}">{escape(text)}</td></tr>'


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, the first of each row as code."""
    lines = [
        f'<tr><td class="text"><code>{escape(first)}</code></td>'
        + "".join(f'<td class="text">{escape(text)}</td>' for text in others)
        + "</tr>"
        for first, *others in rows
    ]
    return table(head, lines, head)


def milliseconds(timing: Timing | None) -> str:
    """The median with its quartiles."""
    if timing is None:
        return "–"
    return f"{three_digits(timing.median)} <small>({three_digits(timing.low)}–{three_digits(timing.high)})</small>"


def ratio(value: float) -> str:
    """How many times faster, coloured as a gain or a loss."""
    return f'<span class="{verdict(value)}">{value:.2f}×</span>'


def error(value: float) -> str:
    """A relative error."""
    # A hyphen that lines don't break at.
    return "exact" if value == 0 else f"{value:.0e}".replace("-", "\u2011")
