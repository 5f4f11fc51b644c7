"""Locks that the child of a fork finds free."""

from __future__ import annotations

import os
import threading
from typing import Any


def lock(reentrant: bool = False) -> Any:
    """A `threading.Lock`, or a `threading.RLock`, that is free in the child of a fork.

    Whoever held it there is gone: no thread but the one that forked goes on.
    """
    made = threading.RLock() if reentrant else threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=made._at_fork_reinit)
    return made
