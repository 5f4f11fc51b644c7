"""What functions are called and take, and what their documentation says first: pairs out of installed sources."""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

_LONGEST_SOURCE, _LONGEST_TARGET, _SHORTEST_TARGET = 200, 100, 12
_QUOTES = b'"""', b"'''"
# No functions of users are in them, or no text.
_LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_TORCH = ("*.py", "autograd", "cuda", "distributions", "fft", "functional", "linalg", "nn", "optim", "special", "utils")
_ADD = {"add_docstr", "_add_docstr", "add_docstr_all"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Described(NamedTuple):
    """A function.

    Attributes:
        module: that it is of.
        source: its name, after its class's, with its signature.
        target: the first line of its documentation.
    """

    module: str
    source: str
    target: str


@cache
def described_functions() -> tuple[Described, ...]:
    """Those of the installed standard library and torch whose first line of documentation is whole.

    Sources are read and parsed, nothing is imported or run; the order and the result depend on the versions alone.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    parts = [(standard, _below(standard)), (Path(torch.__file__).parent.parent, _of_torch())]
    found = [one for root, files in parts for path in files for one in _of_file(path, root)]
    return tuple(dict.fromkeys(found))


def _below(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        found += [Path(place, name) for name in sorted(files) if name.endswith(".py")]
    return found


def _of_torch() -> list[Path]:
    root = Path(torch.__file__).parent
    found = []
    for name in _TORCH:
        found += sorted(root.glob(name)) if "*" in name else _below(root / name)
    return found


def _of_file(path: Path, root: Path) -> Iterator[Described]:
    content = path.read_bytes()
    if not any(quotes in content for quotes in _QUOTES):
        return
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    for source, documentation in _documented(tree.body, ""):
        target = _first_line(documentation)
        if target is not None and len(source) <= _LONGEST_SOURCE:
            yield Described(module, source, target)


def _documented(body: list[ast.stmt], before: str) -> Iterator[tuple[str, str]]:
    """Names with signatures, and documentation, of functions and of methods, and of what `add_docstr` documents."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _documented(node.body, f"{before}{node.name}.")
        elif isinstance(node, _Function) and not node.name.startswith("_"):
            if documentation := ast.get_docstring(node):
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                yield f"{before}{node.name}({ast.unparse(node.args)}){returns}", documentation
        elif isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
            yield from _added(node.value)


def _added(call: ast.Call) -> Iterator[tuple[str, str]]:
    """What `add_docstr(function, documentation)` says, whose first line is the name and the signature."""
    if getattr(call.func, "id", None) not in _ADD or len(call.args) < 2:
        return
    text = next((node.value for node in ast.walk(call.args[1]) if isinstance(node, ast.Constant)), None)
    if isinstance(text, str):
        signature, _, documentation = text.strip().partition("\n")
        if "(" in signature:
            yield signature.strip(), documentation.strip()


def _first_line(documentation: str) -> str | None:
    """The first line, where a sentence ends with it."""
    line, _, rest = documentation.strip().partition("\n")
    line = line.strip()
    whole = line.endswith((".", "!", ")")) or not rest.strip() or rest.lstrip(" ").startswith("\n")
    fits = _SHORTEST_TARGET <= len(line) <= _LONGEST_TARGET
    return line if whole and fits and line.isascii() and " " in line else None
