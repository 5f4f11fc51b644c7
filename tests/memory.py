"""Memory that is not what the call before left there."""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from aigc_fast.runtime import memory

ALLOCATORS = {torch: ("empty", "empty_like", "empty_strided"), torch.Tensor: ("new_empty", "new_empty_strided")}


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = kwargs.get("out")
        made = make(*args, **kwargs)
        if out is None and (made.is_floating_point() or made.is_complex()):
            made.detach().fill_(float("nan"))
        return made

    return poisoned


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills what is allocated inside the block with NaN: an output that a kernel forgets to write shows."""
    patches = [
        patch.object(home, name, _poisoned(getattr(home, name))) for home, names in ALLOCATORS.items() for name in names
    ]
    patches.append(patch.object(memory, "reuse", memory.Reuse(0)))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()


# Addresses alone, of which Linux asks no memory; Python has no name for it.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


def far_apart(*shape: int, step: int) -> torch.Tensor:
    """Random numbers whose first axis lies `step` elements apart, in memory of which no more than they is touched."""
    inner = torch.empty(shape[1:], device="meta")
    nbytes = ((shape[0] - 1) * step + inner.numel()) * torch.float32.itemsize
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        pytest.skip(f"{nbytes} bytes of addresses: {error}")
    return torch.frombuffer(memory, dtype=torch.float32).as_strided(shape, (step, *inner.stride())).normal_()


def peak() -> int:
    """The most bytes that this process had since `forget_peak`; 0 where nobody tells."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def forget_peak() -> None:
    """Begins what `peak` tells anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
