"""What the tests of the command line share: how it is run, and how it refuses."""

from __future__ import annotations

import signal

import pytest
import torch
from typer.testing import CliRunner

from aigc_fast.cli import app
from aigc_fast.models import load

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


def assert_goes_on(folder, trainer, args, *samples):
    """A training that a signal ends at its third step and another command resumes is the uninterrupted one."""
    step = trainer._step

    def signalled(self, inputs, labels):
        if self.step_count == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, inputs, labels)

    args = ["train", *args]
    assert run(*args, "--out", folder / "whole").exit_code == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_step", signalled)
        assert run(*args, "--out", folder / "parts").exit_code == 130
    assert run(*args, "--out", folder / "parts", "--resume", "latest").exit_code == 0
    models = [load(folder / name / "model.safetensors").state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    for name in ("log.jsonl", *samples):
        assert (folder / "parts" / name).read_bytes() == (folder / "whole" / name).read_bytes()
