"""What the tests of the command line share: how it is run, and how it refuses."""

from __future__ import annotations

from typer.testing import CliRunner

from aigc_fast.cli import app

TINY = ["--steps", "4", "--batch-size", "8", "--sample-interval", "0"]


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def assert_refused(result, *words):
    """One line on stderr that holds the words, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("aigc-fast: error: ")
    for word in words:
        assert str(word) in lines[0]


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
