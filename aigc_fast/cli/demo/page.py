"""Parts of the demo's page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from aigc_fast.cli.demo.compare import Comparison, Parity, Row
from aigc_fast.metrics import ImageReport, SoundReport, VideoReport
from aigc_fast.page import cards, error, group, milliseconds, ratio, row, table

IDEAL = "ideal"


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
    lines, before = [], None
    for line in rows:
        if line.group != before:
            before = line.group
            lines.append(group(before, len(head)))
        times = map(milliseconds, (line.fast, line.stock, line.channels_last))
        errors = f"{error(line.error)} <small>({error(line.stock_error)})</small>"
        lines.append(row([escape(line.name), ratio(line.ratio), *times, errors]))
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
    """The metrics of several models side by side, with what would be ideal; rows as those of `Medium`, without those
    that none of the reports has."""
    first = next(iter(reports.values())).as_dict()
    lines = []
    for label, name, form, ideal in rows:
        found = [getattr(report, name) for report in reports.values()]
        if found == [None] * len(found):
            continue
        cells = "".join(f"<td>{'' if value is None else form.format(value)}</td>" for value in found)
        lines.append(f'<tr><td>{label}</td>{cells}<td class="text">{escape(ideal.format(**first))}</td></tr>')
    return table(("", *reports, IDEAL), lines, (IDEAL,))
