"""Memory that is not what the call before left there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

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
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()
