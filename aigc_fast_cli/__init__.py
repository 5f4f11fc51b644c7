"""Where the script `aigc-fast` begins: what needs no torch is answered before the package, and torch, is imported."""

from __future__ import annotations

import ast
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

COMMANDS = ("demo", "train", "generate", "evaluate", "provenance", "doctor", "explain", "tune", "bench", "profile")
"""The commands: functions of `aigc_fast.cli`, each in a module of its own name."""

_COMPLETION = "_AIGC_FAST_COMPLETE"


def main() -> None:
    """Entry point of the `aigc-fast` script."""
    if sys.argv[1:] in ([], ["--help"], ["--version"]) and _COMPLETION not in os.environ:
        from aigc_fast_cli.app import PROGRAM, new_app

        package = Path(find_spec("aigc_fast").origin).parent
        new_app([_described(package / "cli", name) for name in COMMANDS], _version(package))(prog_name=PROGRAM)
    else:
        _imported()()


def _imported() -> Callable[[], None]:
    """The package's entry point.

    While it is imported Ctrl-C ends the process at once: a KeyboardInterrupt would be a traceback from within torch, or
    be lost there.
    """
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from aigc_fast.cli import main as run
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return run


def _version(package: Path) -> str:
    for statement in _statements(package / "__init__.py"):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__":
            return ast.literal_eval(statement.value)
    raise RuntimeError(f"{package}: has no __version__")


def _described(folder: Path, name: str) -> Callable[[], None]:
    """What stands for a command in the help: a function of its name and docstring."""
    module = folder / f"{name}.py"
    found = _statements(module if module.exists() else folder / name / "__init__.py")
    command = next(part for part in found if isinstance(part, ast.FunctionDef) and part.name == name)

    def described() -> None: ...

    described.__name__, described.__doc__ = name, ast.get_docstring(command)
    return described


def _statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_bytes(), path).body
