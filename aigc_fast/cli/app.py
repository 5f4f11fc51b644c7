"""The application: how commands are grouped and how errors reach the user."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from aigc_fast.backends import BackendError
from aigc_fast.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130

# typer raises click's exceptions, from click itself or from the copy that newer versions carry.
_ClickException = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
_NoArguments = "NoArgsIsHelpError"

console = Console(highlight=False)


class Group(TyperGroup):
    """Commands whose errors are one line on stderr: exit code 2 for bad input, 130 when interrupted."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Runs the command line; exits the process when `standalone_mode` is true."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
            sys.stdout.flush()
        except (UserError, BackendError) as error:
            code = _say(str(error))
        except OSError as error:
            code = _say_of_system(error)
        except _ClickException as error:
            code = _help_or_say(error)
        except (KeyboardInterrupt, typer.Abort):
            print("aigc-fast: interrupted", file=sys.stderr)
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> int:
    print("aigc-fast: error: " + " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


def _say_of_system(error: OSError) -> int:
    if error.filename is None and error.errno == errno.ENOSPC:
        _drop_output()
    return _say(f"{error.filename or 'output'}: {error.strerror or error}")


def _drop_output() -> None:
    """What standard output did not take would be written again, and fail again, when the process ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _help_or_say(error: Any) -> int:
    if type(error).__name__ == _NoArguments:
        print(error.format_message())
        return 0
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    hint = f" (see {command} --help)" if command else ""
    return _say(error.format_message().rstrip(".") + hint)
