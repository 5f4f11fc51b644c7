"""Errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input from outside: a damaged file, an unwritable folder, settings that don't fit.

    The message is one clear line that says what came and what was expected;
    the command line prints it without a traceback and exits with code 2. Other libraries' messages of several lines,
    which it may hold, become one.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(map(str.strip, message.splitlines())))
