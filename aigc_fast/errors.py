"""Errors that the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input from outside: a damaged file, an unwritable folder, an unknown name or value.

    The message is one line that says what was wrong and what was expected. The command line prints it on stderr
    and exits with code 2.
    """
