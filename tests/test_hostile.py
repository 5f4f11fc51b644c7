"""A fixed number of the files that tests/hostile.py changes, and that valid ones are read."""

from __future__ import annotations

from pathlib import Path

import hostile
import pytest

EXAMPLES = 40


@pytest.mark.parametrize("name", hostile.READERS)
def test_changed_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    if name.startswith("GGUF"):
        pytest.importorskip("gguf", reason="gguf is not installed")
    reader, valid = hostile.READERS[name], tmp_path / "valid"
    valid.mkdir()
    reader.make(valid)
    reader.read(valid)
    read = [hostile.check(name, valid, tmp_path / str(seed), seed) for seed in range(EXAMPLES)]
    assert not all(read), "no change was refused"
