"""The application: how commands are grouped and how errors reach the user."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar

import typer
from rich.console import Console
from typer.core import TyperGroup

PROGRAM = "aigc-fast"
BAD_INPUT = 2
INTERRUPTED = 130

# typer raises click's exceptions, from click itself or from the copy that newer versions carry.
_ClickException = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
_NoArguments = "NoArgsIsHelpError"
_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
_OF_DEVICE = ("CUDA error", "cuDNN error", "MPS backend")

# What is printed may hold brackets: names of files, `aigc-fast[audio]`.
console = Console(highlight=False, markup=False)


class Group(TyperGroup):
    """Commands whose errors are one line on stderr: exit code 2 for bad input, 130 when interrupted.

    Attributes:
        bad_input: errors of the commands that tell of bad input.
    """

    bad_input: ClassVar[tuple[type[Exception], ...]] = ()

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Runs the command line; exits the process when `standalone_mode` is true."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        _escape_what_can_not_be_printed()
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
            sys.stdout.flush()
        except self.bad_input as error:
            code = _say(str(error))
        except OSError as error:
            code = _say_of_system(error)
        except (MemoryError, RuntimeError) as error:
            code = _say_of_machine(error)
        except _ClickException as error:
            code = _help_or_say(error)
        except (KeyboardInterrupt, typer.Abort):
            print("aigc-fast: interrupted", file=sys.stderr)
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> int:
    print("aigc-fast: error: " + " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


def _escape_what_can_not_be_printed() -> None:
    """A file's name may hold bytes that are no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say_of_machine(error: MemoryError | RuntimeError) -> int:
    """Of what the machine lacks; other errors are the package's own, and want their traceback."""
    message = str(error).partition("\n")[0] or "out of memory"
    if isinstance(error, MemoryError) or any(words in message for words in _OF_MEMORY):
        return _say(f"{message}; a smaller --batch-size, --size or --count takes less")
    if any(words in message for words in _OF_DEVICE):
        return _say(message)
    raise error


def _say_of_system(error: OSError) -> int:
    if error.filename is None:
        _drop_output()
    return _say(f"{error.filename or 'output'}: {error.strerror or error}")


def _drop_output() -> None:
    """What standard output did not take would be written again, and fail again, when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _help_or_say(error: Any) -> int:
    if type(error).__name__ == _NoArguments:
        print(error.format_message())
        return 0
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    hint = f" (see {command} --help)" if command else ""
    return _say(error.format_message().rstrip(".") + hint)


def new_app(commands: Iterable[Callable[..., None]], version: str, group: type[Group] = Group) -> typer.Typer:
    """The application of some commands.

    Args:
        commands: functions, named as the commands.
        version: what --version shows.
        group: which errors it tells of.
    """
    app = typer.Typer(
        name=PROGRAM,
        cls=group,
        help="Train models of images, sounds, text and video, generate with them and measure what they make, on "
        "kernels that make PyTorch faster.",
        epilog=f"Start with:  {PROGRAM} demo",
        context_settings={"obj": version},
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for command in commands:
        app.command(help=_flowing(command.__doc__ or ""))(command)

    app.callback()(_options)
    return app


def _flowing(text: str) -> str:
    """A docstring whose paragraphs are lines, which the help breaks by the terminal's width."""
    return "\n\n".join(" ".join(map(str.strip, part.splitlines())) for part in text.split("\n\n"))


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        console.print(f"{PROGRAM} {context.obj}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
