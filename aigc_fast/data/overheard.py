"""What libraries say beside their results: warnings, and lines on stderr."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from aigc_fast.runtime.locks import lock

# Warnings' filters and stderr are the process's: two threads that put them back in another order than they took them
# would change them for good.
_ONE_AT_A_TIME = lock()
_STDERR = 2


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Keeps warnings from stderr; one thread at a time.

    Yields:
        What was warned of, complete when the block ends.
    """
    said: list[str] = []
    with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
        # What garbage was not closed may be anybody's.
        said += [str(warning.message) for warning in caught if not issubclass(warning.category, ResourceWarning)]


@contextmanager
def stderr_overheard(said: list[str]) -> Iterator[None]:
    """Adds the lines that libraries without Python write to stderr to `said`; within `overheard`."""
    with tempfile.TemporaryFile() as file:
        try:
            stderr = os.dup(_STDERR)
        except OSError:
            # Closed, as in daemons: nobody would see the lines.
            yield
            return
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
        file.seek(0)
        said += file.read().decode(errors="replace").splitlines()
