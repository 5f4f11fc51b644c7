"""`import aigc_fast` brings nothing in that is slow to import, and no module imports one that is built on it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_backends import python

PACKAGE = Path(__file__).parent.parent / "aigc_fast"
# A call goes down this list, and so does every import.
LAYERS = ("optimize", "integrations", "models", "nn", "functional", "ops", "runtime")
# Each takes longer than the package itself.
SLOW = ("torch._dynamo", "sympy", "triton", "torch.utils.flop_counter", "torch.nn.attention.bias", "torch.onnx")


def test_what_is_slow_to_import_is_not_imported() -> None:
    run = python(f"""
import torch
before = set(sys.modules)
import aigc_fast
print([name for name in {SLOW!r} if name in sys.modules and name not in before])
""")
    assert run.stdout == "[]\n", run.stdout + run.stderr


@pytest.mark.parametrize("first", ["aigc_fast", "torch.utils.flop_counter"])
def test_products_are_counted_whatever_is_imported_first(first: str) -> None:
    run = python(f"""
import {first}
import torch, aigc_fast
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    aigc_fast.functional.conv2d(torch.ones(1, 16, 32, 32), torch.ones(16, 16, 3, 3))
print(counter.get_total_flops())
""")
    assert run.stdout == f"{2 * 16 * 16 * 9 * 30 * 30}\n", run.stdout + run.stderr


def imported(path: Path) -> Iterator[str]:
    """The parts of the package that a file imports from, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        yield from (name.split(".")[1] for name in names if name.startswith("aigc_fast."))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    above = LAYERS[: LAYERS.index(layer)]
    files = [PACKAGE / f"{layer}.py"] if (PACKAGE / f"{layer}.py").exists() else sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    assert [(path.name, part) for path in files for part in imported(path) if part in above] == []


@pytest.mark.parametrize("folder", ["ops", "nn", "runtime"])
def test_what_graphs_trace_asks_for_no_union_of_types(folder: str) -> None:
    """Dynamo of torch 2.6 refuses `isinstance(x, A | B)`."""
    calls = (
        (path, node)
        for path in (PACKAGE / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
    )
    unions = [f"{path}:{node.lineno}" for path, node in calls if isinstance(node.args[1], ast.BinOp)]
    assert not unions
