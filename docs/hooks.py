"""Puts into pages what is made of the package: its public names, and of the results that the repository keeps tables,
and charts with their command."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from aigc_fast.bench.page import op_chart, roofline_of
from aigc_fast.bench.runner import Result, merged
from aigc_fast.bench.speed import section

RESULTS = Path(__file__).parents[1] / "bench" / "results"
COMMAND = "aigc-fast bench $(printf -- '--from %s ' bench/results/*.json) --html out/bench.html"

_MARKS = {
    "<!-- figure: speed -->": op_chart,
    "<!-- figure: roofline -->": roofline_of,
}


def kept() -> list[Result]:
    """The results in the repository."""
    return [Result.read(path) for path in sorted(RESULTS.glob("*.json"))]


def public(module: str) -> list[str]:
    """The functions and classes that a module makes public."""
    found = import_module(module)
    return [name for name in sorted(found.__all__) if callable(getattr(found, name))]


def _documented(mark: re.Match[str]) -> str:
    return "\n\n".join(f"::: {mark[1]}.{name}" for name in public(mark[1]))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the marks of a page; called by MkDocs."""
    markdown = re.sub(r"<!-- names: ([\w.]+) -->", _documented, markdown)
    if "<!-- tables -->" in markdown:
        markdown = markdown.replace("<!-- tables -->", section(kept()))
    style = files("aigc_fast.page").joinpath("chart.css").read_text(encoding="utf-8")
    for mark, draw in _MARKS.items():
        if mark in markdown:
            figure = draw(merged(kept()))
            markdown = markdown.replace(mark, f"<style>{style}</style>\n{figure}\n\n```sh\n{COMMAND}\n```")
    return markdown
