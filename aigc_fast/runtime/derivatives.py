"""Derivatives of what is computed anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


@contextmanager
def recording() -> Iterator[None]:
    """Records gradients inside the block, below the dispatcher's autograd too, where a registered op's kernel runs."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded.remove(_AUTOGRAD)), torch.enable_grad():
        yield


def own_variable(tensor: Tensor, keep_graph: bool) -> Tensor:
    """The tensor as a variable apart from others that may be the same tensor, on its graph where that is kept."""
    return tensor.view_as(tensor) if keep_graph and tensor.requires_grad else tensor.detach().requires_grad_()
