"""What a reader did besides reading, in lines for people: what it left out, put right or changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aigc_fast.wording import counted, listed

_NAMED = 3


class Notes:
    """Gathers what befell files; one line for each kind, the files counted and the first few named.

    Args:
        folder: that the files lie in; they are named from there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[tuple[str, str], list[str]] = {}
        self._said: list[str] = []

    def add(self, what: str, path: Path, detail: str = "", unit: str = "files") -> None:
        """Notes that `what` befell one of `unit`, that at `path`; `detail` is said where it is named."""
        name = text_of(path.relative_to(self._folder))
        self._names.setdefault((unit, what), []).append(f"{name} ({detail})" if detail else name)

    def say(self, line: str) -> None:
        """Notes what is true of all of them."""
        self._said.append(line)

    @property
    def lines(self) -> tuple[str, ...]:
        """What was said, and one a kind, in the order in which they came up."""
        kinds = (f"{counted(len(names), unit)} {what}: {some(names)}" for (unit, what), names in self._names.items())
        return (*self._said, *kinds)


def some(names: Sequence[str]) -> str:
    """The first few names of files, in one line."""
    return listed([one_line(name) for name in names], _NAMED)


def one_line(text: object, limit: int = 100) -> str:
    """The text in one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def text_of(name: str | os.PathLike[str]) -> str:
    """A file's name that can be written anywhere: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
