"""Programs over the CUDA kernels as the CPU emulates them, built with sanitizers and without."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
OPTIONS = ["-std=c++20", "-O1", "-g1", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
OPTIONS += ["-DAIGC_CUDA_HOST", "-DAIGC_LEVEL=cuda", f"-I{SOURCES}"]
SANITIZERS = {
    "plain": [],
    "addresses": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "threads": ["-fsanitize=thread"],
}

needs_compiler = [
    pytest.mark.skipif(not SOURCES.exists(), reason="no sources"),
    pytest.mark.skipif(COMPILER is None, reason="no compiler"),
]


def compile_(*arguments: object) -> None:
    done = subprocess.run([COMPILER, *OPTIONS, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@cache
def scheduler(folder: Path, *options: str) -> Path:
    """The emulation's own source, which no sanitizer looks into."""
    built = folder / f"emulate{len(options)}.o"
    if not built.exists():
        compile_("-c", SOURCES / "cuda" / "emulate" / "emulate.cpp", "-o", built, *options)
    return built


def build(folder: Path, name: str, sources: Sequence[Path], sanitizer: str, *options: str) -> Path:
    """A program of these sources and the emulation; skips where the sanitizer's library is not installed."""
    program = folder / f"{name}-{sanitizer}{len(options)}"
    if sanitizer != "plain":
        _check_sanitizer(folder, sanitizer)
    given = [argument for source in sources for argument in ("-x", "c++", source)]
    compile_(*SANITIZERS[sanitizer], *given, "-x", "none", scheduler(folder, *options), "-o", program)
    return program


@cache
def _check_sanitizer(folder: Path, sanitizer: str) -> None:
    source, program = folder / "nothing.cpp", folder / f"nothing-{sanitizer}"
    source.write_text("int main() { return 0; }\n")
    done = subprocess.run([COMPILER, *SANITIZERS[sanitizer], source, "-o", program], capture_output=True, text=True)
    if done.returncode == 0:
        done = subprocess.run([program], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{SANITIZERS[sanitizer][0]} does not work here: {done.stderr[-200:]}")


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A first report says all, and the memory of a launch that failed is kept on purpose.
    settings = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, **settings})
