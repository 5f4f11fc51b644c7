"""`make gpu` keeps to its time and tells what each part returned, of parts that do nothing; and its rows run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_speed
import pytest

from aigc_fast.runtime import native

SCRIPT = Path(__file__).with_name("gpu.sh")
PARTS = "build", "tests", "bench"

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
needs_emulation = pytest.mark.skipif(
    not native.is_emulated or native.cuda is None or native.cpu_reason() is not None,
    reason="AIGC_FAST_CUDA_HOST=1 is not set",
)


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


@needs_bash
def test_the_parts_share_the_time(tmp_path: Path) -> None:
    found = "\n".join(lines(tmp_path, 300))
    limits = {name: int(of) for name, of in re.findall(r"(\w+): returned \d+ after \d+ s of at most (\d+)", found)}
    assert limits.keys() >= set(PARTS)
    assert limits["build"] + 115 <= 300 - 5
    assert "tests: returned 0" in found


@needs_bash
def test_parts_without_time_are_left_out(tmp_path: Path) -> None:
    found = lines(tmp_path, 5)
    for part in PARTS:
        assert f"{part}: left out: none of 5 s are left" in found


@needs_emulation
@pytest.mark.parametrize("room", gpu_speed.ROOMS, ids=lambda room: room.__name__)
def test_emulated_rows_run_and_their_peers_do_the_same(
    room: Callable[[gpu_speed.Sizes], Iterator[gpu_speed.Row]],
) -> None:
    rows = list(room(gpu_speed.Sizes("cpu", 32)))
    assert len({row.name for row in rows}) == len(rows)
    for row in (row for row in rows if row.backend == "cuda"):
        found, others = row.run(), [peer() for peer in row.peers.values() if peer is not None]
        assert others or None in row.peers.values()
        for other in others:
            ours, theirs = map(gpu_speed.first_of, (found, other))
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            assert gpu_speed.apart(found, other) < 0.3 or not row.is_same  # int4 is rounded by as much
        assert row.is_same == (room is not gpu_speed.random_rows)
