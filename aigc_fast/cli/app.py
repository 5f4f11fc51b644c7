"""What the package's commands share with the script that begins before the package is imported."""

from __future__ import annotations

from aigc_fast.errors import UserError
from aigc_fast.runtime.backends import BackendError
from aigc_fast_cli import app
from aigc_fast_cli.app import BAD_INPUT, INTERRUPTED, console

__all__ = ["BAD_INPUT", "INTERRUPTED", "Group", "console"]


class Group(app.Group):
    """Commands whose bad input is the package's."""

    bad_input = (UserError, BackendError)
