"""`make gpu` keeps to its time and tells what each part returned; here, of parts that do nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu.sh")
PARTS = "build", "tests", "bench"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def lines(folder: Path, seconds: int) -> list[str]:
    """The summary, with programs in place of what builds and runs that only say which they are."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("python", "cmake", "cp", "compute-sanitizer"):
        tool = tools / name
        tool.write_text(f"#!/bin/sh\necho {name}\n")
        tool.chmod(0o755)
    out = folder / "out"
    own = {"PYTHON": "python", "OUT": str(out), "SECONDS_IN_ALL": str(seconds), "AIGC_FAST_CUDA": "OFF"}
    path = f"{tools}:{os.environ['PATH']}"
    subprocess.run([SCRIPT], env={**os.environ, **own, "PATH": path}, capture_output=True, timeout=60)
    assert len(list(out.iterdir())) <= 8
    return (out / "summary.txt").read_text().splitlines()


def test_the_parts_share_the_time(tmp_path: Path) -> None:
    found = "\n".join(lines(tmp_path, 300))
    limits = {name: int(of) for name, of in re.findall(r"(\w+): returned \d+ after \d+ s of at most (\d+)", found)}
    assert limits.keys() >= set(PARTS)
    assert limits["build"] + 115 <= 300 - 5
    assert "tests: returned 0" in found


def test_parts_without_time_are_left_out(tmp_path: Path) -> None:
    found = lines(tmp_path, 5)
    for part in PARTS:
        assert f"{part}: left out: none of 5 s are left" in found
