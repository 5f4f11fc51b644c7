"""Locks that another thread held when the process forked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HELD = """
import os, threading
from {module} import {name} as room

held = room{path}
holder = threading.Thread(target=held.acquire)
holder.start()
holder.join()
child = os.fork()
if child == 0:
    os._exit(0 if held.acquire(blocking=False) else 1)
assert os.waitpid(child, 0)[1] == 0, "the child waits for a thread that it does not have"
assert not held.acquire(blocking=False)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("module", "name", "path"),
    [
        ("aigc_fast.runtime.kept", "store", "._admission"),
        ("aigc_fast.runtime.kept", "_filling", ""),
        ("aigc_fast.runtime.memory", "reuse", "._busy"),
        ("aigc_fast.ops.decode.keeping", "_packing", ""),
        ("aigc_fast.data.overheard", "_ONE_AT_A_TIME", ""),
    ],
)
def test_the_child_of_a_fork_finds_every_lock_free(module: str, name: str, path: str) -> None:
    script = HELD.format(module=module, name=name, path=path)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
