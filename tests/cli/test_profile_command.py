"""`aigc-fast profile`: of a script and of a model; no time is asserted."""

from commands import assert_refused, run

SCRIPT = """
import sys
import torch
from torch import nn

assert sys.argv[1:] == ["--lr", "0.1"] and __name__ == "__main__"
net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 3 * 3, 2))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for step in range(50):
    assert step < 3
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(torch.randn(4, 1, 5, 5)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
"""


def test_a_script_is_watched_without_changes_and_left_after_its_steps(tmp_path):
    script, page = tmp_path / "train.py", tmp_path / "page.html"
    script.write_text(SCRIPT)
    found = run("profile", script, "--steps", "2", "--html", page, "--", "--lr", "0.1")
    assert found.exit_code == 0, found.output
    assert "a step of 2: Sequential forward" in " ".join(found.stdout.split())
    assert "Sequential.0" in page.read_text(encoding="utf-8")
    assert_refused(run("profile", script, "--html", page), "is there already", "choose another --html")


def test_of_a_model():
    found = run("profile", "mlp-gan", "--steps", "1")
    assert found.exit_code == 0, found.output
    assert "Linear" in found.stdout


def test_bad_input_is_a_line(tmp_path):
    assert_refused(run("profile", "dcgn"), "is neither a model")
    (tmp_path / "a.py").write_text("raise SystemExit(3)")
    assert_refused(run("profile", tmp_path / "a.py"), "stopped with 3")
    (tmp_path / "a.py").write_text("x = 1")
    assert_refused(run("profile", tmp_path / "a.py"), "calls no torch.nn.Module")
    (tmp_path / "a.py").write_text("def f():\n    raise ValueError('a\\nb')\n\nf()")
    assert_refused(run("profile", tmp_path / "a.py"), "a.py: line 2: ValueError: a b")
