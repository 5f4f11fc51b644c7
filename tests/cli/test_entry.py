"""The script's beginning: what is answered before torch is imported, and that it is what the commands say."""

import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import aigc_fast
from aigc_fast.cli import app
from aigc_fast_cli import COMMANDS


def script(*args, **environment):
    """The script in a process of its own, which tells at last whether it has imported torch."""
    code = f"""
import sys
sys.argv = {["aigc-fast", *args]!r}
from aigc_fast_cli import main
try:
    main()
finally:
    print(" ".join(sorted({{"torch", "aigc_fast", "numpy"}} & set(sys.modules))), file=sys.stderr)
"""
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "120", **environment},
    )


@pytest.mark.parametrize("args", [(), ("--help",), ("--version",)])
def test_help_and_version_need_no_torch_and_are_the_commands_own(args, monkeypatch):
    done = script(*args)
    assert (done.returncode, done.stderr) == (0, "\n")
    monkeypatch.setenv("COLUMNS", "120")
    assert done.stdout == CliRunner().invoke(app, list(args), prog_name="aigc-fast").stdout
    assert (args == ("--version",)) == (done.stdout == f"aigc-fast {aigc_fast.__version__}\n")


def test_what_is_wrong_is_said_by_the_commands():
    done = script("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("aigc-fast: error: No such command 'trian'")
    assert done.stderr.endswith("aigc_fast numpy torch\n")


WAYS = {"script": ["-c", "from aigc_fast_cli import main; main()"], "module": ["-m", "aigc_fast.cli"]}


@pytest.mark.skipif(os.name == "nt", reason="there a signal is no reason to end")
@pytest.mark.parametrize(
    ("way", "module", "args", "ignored"),
    [
        ("script", "typer", ["--help"], False),
        *((way, module, ["trian"], False) for way in WAYS for module in ("torch", "aigc_fast.cli", "typer")),
        *((way, "aigc_fast.cli", ["trian"], True) for way in WAYS),
    ],
)
def test_an_interruption_while_modules_are_imported_ends_it_without_a_word(way, module, args, ignored, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, signal, sys
class Interrupted:
    def find_spec(self, name, *args):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.{"SIG_IGN" if ignored else "default_int_handler"})
sys.meta_path.insert(0, Interrupted())
""")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *WAYS[way], *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    if ignored:
        assert done.returncode == 2
        assert done.stderr.startswith("aigc-fast: error")
    else:
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_the_shell_completes_options_of_commands():
    done = script(_AIGC_FAST_COMPLETE="complete_bash", COMP_WORDS="aigc-fast train --critic", COMP_CWORD="2")
    assert done.stdout.split() == ["--critic-steps"]


def test_every_command_is_there():
    assert [command.callback.__name__ for command in app.registered_commands] == list(COMMANDS)
