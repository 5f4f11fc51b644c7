"""What csrc/core promises to the kernels, and how csrc/cpu keeps its ops apart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")

pytestmark = pytest.mark.skipif(not SOURCES.exists(), reason="no sources")


@pytest.mark.skipif(COMPILER is None, reason="no compiler")
def test_scopes_of_working_memory_nest_and_grow(tmp_path: Path) -> None:
    program = tmp_path / "check"
    sources = SOURCES / "check" / "arena.cpp", SOURCES / "core" / "arena.cpp"
    options = ["-std=gnu++20", "-O1", "-pthread", "-DAIGC_LEVEL=baseline", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *options, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def code_of(source: Path) -> str:
    """Without comments and the preprocessor's lines."""
    return re.sub(r"//.*|^\s*#(.*\\\n)*.*", "", source.read_text(), flags=re.MULTILINE).strip()


def op_of(source: Path) -> str:
    return source.relative_to(SOURCES / "cpu").parts[0].removesuffix(".cpp")


@pytest.mark.parametrize(
    "source",
    [pytest.param(path, id=str(path.relative_to(SOURCES))) for path in sorted((SOURCES / "cpu").rglob("*.*"))],
)
def test_all_of_an_op_is_in_its_namespace(source: Path) -> None:
    code = code_of(source)
    opening = f"namespace aigc::AIGC_LEVEL::{op_of(source)} {{"
    assert code.startswith(opening)
    depth = 0
    for brace in re.finditer(r"[{}]", code):
        depth += 1 if brace[0] == "{" else -1
        assert depth > 0 or brace.end() == len(code), f"code after the namespace: {code[brace.end() :][:80]}"
