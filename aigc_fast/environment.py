"""Settings from environment variables."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Collection
from pathlib import Path

_BAD_INPUT = 2


def setting(variable: str, known: Collection[str], default: str) -> str:
    """What an environment variable says, `default` where it is empty or not set.

    Raises:
        ValueError: on a value that is not known.
        SystemExit: the same on the command line, which prints one line.
    """
    value = os.environ.get(variable) or default
    if value in known:
        return value
    message = f"{variable}={value!r}: expected one of {', '.join(known)}"
    if not _on_the_command_line():
        raise ValueError(message)
    # The command line can't catch what is raised before its own modules are imported.
    print(f"aigc-fast: error: {message}", file=sys.stderr)
    sys.exit(_BAD_INPUT)


def _on_the_command_line() -> bool:
    program = sys.argv[0] if sys.argv else ""
    as_module = program == "-m" and ("-m", "aigc_fast.cli") in itertools.pairwise(sys.orig_argv)
    return as_module or Path(program).stem == "aigc-fast"
