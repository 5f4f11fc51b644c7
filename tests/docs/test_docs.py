"""The pages: every block of Python runs, every page has its place, every figure is of the kept results."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_backends import needs_native

from aigc_fast import data, functional, generation, metrics, models, nn, training
from aigc_fast.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Before a block may stand which package it needs, or why it cannot run by itself.
_BLOCK = re.compile(r"(?:<!-- (needs|shown alone): ([^>]+) -->\n)?```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: str) -> list[tuple[str, str, str]]:
    return _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@needs_native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in (*PAGES, "../README.md") if blocks(page)])
def test_every_block_runs_after_those_before_it(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for index, (mark, words, code) in enumerate(blocks(page)):
        if mark == "needs":
            pytest.importorskip(words, reason=f"{words} is not installed")
        if mark == "shown alone":
            continue
        exec(compile(code, f"{page}, block {index}", "exec"), names)


def test_every_page_has_a_place_and_every_place_a_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"[\w/]+\.md", nav)) == PAGES


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
            assert ((DOCS / page).parent / target).is_file(), (page, target)


@pytest.mark.parametrize("module", [functional, nn, models, data, training, metrics, generation])
def test_every_public_name_is_in_the_reference(module: ModuleType, hooks: ModuleType) -> None:
    page = DOCS / "reference" / f"{module.__name__.rpartition('.')[2]}.md"
    text = hooks.on_page_markdown(page.read_text(encoding="utf-8"))
    found = re.findall(rf"^::: {module.__name__}\.(\w+)$", text, re.MULTILINE)
    assert found == sorted(name for name in module.__all__ if callable(getattr(module, name)))


def test_the_commands_and_options_that_are_shown_are_there() -> None:
    commands = {command.callback.__name__ for command in app.registered_commands}
    text = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"aigc-fast (\w+)", text)) <= commands


def test_figures_are_drawn_from_the_kept_results_with_their_command(hooks: ModuleType) -> None:
    if not hooks.kept():
        pytest.skip("no results are kept in the repository")
    text = hooks.on_page_markdown((DOCS / "speed.md").read_text(encoding="utf-8"))
    assert "<!-- figure" not in text
    assert text.count("<svg") == text.count(hooks.COMMAND) == 2
    assert "**Attention.**" in text
    assert not list(DOCS.rglob("*.png")) + list(DOCS.rglob("*.svg"))
