"""The command line `aigc-fast`: one module per command."""

from __future__ import annotations

from importlib import import_module

from aigc_fast import __version__
from aigc_fast.cli.app import Group
from aigc_fast_cli import COMMANDS
from aigc_fast_cli.app import PROGRAM, new_app

app = new_app([getattr(import_module(f"{__name__}.{name}"), name) for name in COMMANDS], __version__, Group)


def main() -> None:
    """Runs the command line."""
    app(prog_name=PROGRAM)
