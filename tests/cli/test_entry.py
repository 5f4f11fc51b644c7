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


@pytest.mark.skipif(os.name == "nt", reason="there a signal is no reason to end")
@pytest.mark.parametrize("ignored", [False, True])
def test_an_interruption_while_the_package_is_imported_ends_it_without_a_word(ignored):
    handler = "SIG_IGN" if ignored else "default_int_handler"
    code = f"""
import os, signal, sys
class Interrupted:
    def find_spec(self, name, *args):
        if name == "aigc_fast.cli":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.{handler})
sys.meta_path.insert(0, Interrupted())
sys.argv = ["aigc-fast", "trian"]
from aigc_fast_cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == (2 if ignored else -signal.SIGINT)
    assert done.stderr.startswith("aigc-fast: error" if ignored else "")
    assert ignored or not done.stderr


def test_the_shell_completes_options_of_commands():
    done = script(_AIGC_FAST_COMPLETE="complete_bash", COMP_WORDS="aigc-fast train --critic", COMP_CWORD="2")
    assert done.stdout.split() == ["--critic-steps"]


def test_every_command_is_there():
    assert [command.callback.__name__ for command in app.registered_commands] == list(COMMANDS)
