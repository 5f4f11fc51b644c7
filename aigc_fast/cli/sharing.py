"""What can be shown to others: facts about an installation, without paths and names."""

from __future__ import annotations

import getpass
import os
import platform
import re
from contextlib import suppress
from typing import Any

from aigc_fast.diagnostics import info

_PATH = re.compile(r"(?<![\w.:/])(?:~?(?:/[^\s/'\",;:()\[\]]+){2,}/?|[A-Za-z]:\\[^\s'\",;]+)")
_SHORTEST_NAME = 3


def _names() -> list[str]:
    """The user's and the machine's."""
    found = [platform.node(), platform.node().partition(".")[0], os.environ.get("USER", "")]
    with suppress(Exception):  # no such user, no such module
        found.append(getpass.getuser())
    # A name like "ci" would be found in other words.
    return sorted({name for name in found if len(name) >= _SHORTEST_NAME}, key=len, reverse=True)


def scrubbed(value: Any) -> Any:
    """The same, JSON-able, with `(path)` in place of every path in its texts and `(name)` of the user's and machine's.

    Args:
        value: texts, numbers, None, and lists and dictionaries of them.
    """
    names = _names()

    def clean(found: Any) -> Any:
        if isinstance(found, dict):
            return {clean(key): clean(inner) for key, inner in found.items()}
        if isinstance(found, (list, tuple)):
            return [clean(inner) for inner in found]
        if not isinstance(found, str):
            return found
        text = _PATH.sub("(path)", found)
        for name in names:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text)
        return text

    return clean(value)


def installation() -> dict[str, Any]:
    """`aigc_fast.info()` as others may see it."""
    return scrubbed(info())
