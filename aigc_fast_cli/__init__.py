"""Where the script `aigc-fast` begins: what needs no torch is answered before the package, and torch, is imported."""

from __future__ import annotations

import ast
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

COMMANDS = ("demo", "train", "generate", "evaluate", "provenance", "doctor", "explain", "tune", "bench", "profile")
"""The commands: functions of `aigc_fast.cli`, each in a module of its own name."""

_COMPLETION = "_AIGC_FAST_COMPLETE"


def main() -> None:
    """Entry point of the `aigc-fast` script, and of `python -m aigc_fast.cli`."""
    end_at_interruptions()
    try:
        run = _imported()
    finally:
        raise_at_interruptions()
    run()


def end_at_interruptions() -> None:
    """Lets Ctrl-C end the process at once, from here on: while modules are imported a KeyboardInterrupt would be a
    traceback from within torch, or be lost there."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_at_interruptions() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _imported() -> Callable[[], None]:
    """What runs the command line: the package's own, or what shows its help without the package."""
    if sys.argv[1:] not in ([], ["--help"], ["--version"]) or _COMPLETION in os.environ:
        from aigc_fast.cli import main as run

        return run
    from aigc_fast_cli.app import PROGRAM, new_app

    package = Path(find_spec("aigc_fast").origin).parent
    app = new_app([_described(package / "cli", name) for name in COMMANDS], _version(package))
    return partial(app, prog_name=PROGRAM)


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
