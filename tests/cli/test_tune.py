"""`aigc-fast tune`: what it runs and what it tells; times are given, not taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_backends import needs_native
from typer.testing import CliRunner, Result

from aigc_fast.cli import app
from aigc_fast.runtime import tuning
from aigc_fast.runtime.operator import operators
from aigc_fast.runtime.timing import Timing

pytestmark = needs_native

SCRIPT = """
import sys
import torch
import aigc_fast
import beside

assert sys.argv[1:] == ["--size", "3"] and __name__ == "__main__"
aigc_fast.functional.conv2d(torch.ones(3, 37, 13, beside.WIDTH), torch.ones(43, 37, 3, 3))
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was measured with invented times is remembered for no other test."""
    yield
    for op in operators().values():
        op.choice.forget()


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(*3 * [1.0 + (name == "ours")]) for name in calls}

    monkeypatch.setattr(tuning, "interleaved", interleaved)
    monkeypatch.setattr(tuning, "_of_all", False)
    monkeypatch.setattr(tuning, "_ops", set())
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(tmp_path / "cache"))


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, args)])


def test_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("WIDTH = 19")
    found = run(script, "--", "--size", "3")
    assert found.exit_code == 0, found.output
    assert "conv(float32[3, 37, 13, 19], float32[43, 37, 3, 3], None" in " ".join(found.output.split())
    assert "1 call measured, 0 of them ours; 0 known before" in found.output
    assert "0 calls measured, 0 of them ours; 1 known before" in run(script, "--", "--size", "3").output
    assert "0 known before" in run(script, "--forget", "--", "--size", "3").output


def test_of_a_model() -> None:
    found = run("vae")
    assert found.exit_code == 0, found.output
    assert "calls measured" in found.output


def test_of_typical_calls() -> None:
    found = run()
    assert found.exit_code == 0, found.output
    kinds = {call.partition("(")[0] for call in tuning.measurements()}
    assert kinds == {"attention", "conv", "conv_transpose", "conv_weight_gradient"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is neither a model"),
        ("raise SystemExit(3)", "stopped with 3"),
        ("import torch\ntorch.ones(2) @ torch.ones(3)\n", "script.py: line 2: RuntimeError: "),
        ("x = 1\ndef f(:\n", "script.py: line 2 is no Python: "),
        ("\0", "script.py: line 1 is no Python: "),
    ],
)
def test_bad_input_is_a_line(content: str | None, message: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    if content is not None:
        script.write_text(content)
    found = run(script)
    assert found.exit_code == 2
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
