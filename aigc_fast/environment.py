"""Settings from environment variables."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

_BAD_INPUT = 2
_BYTES = re.compile(r"(\d+) *(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)


def setting(variable: str, known: Collection[str], default: str) -> str:
    """What an environment variable says, `default` where it is empty or not set.

    Raises:
        ValueError: on a value that is not known.
        SystemExit: the same on the command line, which prints one line.
    """
    value = os.environ.get(variable) or default
    if value in known:
        return value
    raise _refused(variable, value, f"one of {', '.join(known)}")


def byte_setting(variable: str, default: int) -> int:
    """How many bytes an environment variable says, as 536870912, 512M or 2G; `default` where it is empty or not set.

    Raises:
        ValueError: on anything else.
        SystemExit: as in `setting`.
    """
    value = os.environ.get(variable)
    if not value:
        return default
    found = _BYTES.fullmatch(value.strip())
    if found is None:
        raise _refused(variable, value, "a number of bytes, as 536870912, 512M or 2G")
    count, unit = found.groups()
    return int(count) << 10 * (" KMGT".index(unit.upper()) if unit else 0)


def _refused(variable: str, value: str, expected: str) -> ValueError:
    message = f"{variable}={value!r}: expected {expected}"
    if not _on_the_command_line():
        return ValueError(message)
    # The command line can't catch what is raised before its own modules are imported.
    print(f"aigc-fast: error: {message}", file=sys.stderr)
    sys.exit(_BAD_INPUT)


def _on_the_command_line() -> bool:
    program = sys.argv[0] if sys.argv else ""
    as_module = program == "-m" and ("-m", "aigc_fast.cli") in itertools.pairwise(sys.orig_argv)
    return as_module or Path(program).stem == "aigc-fast"
