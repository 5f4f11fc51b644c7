"""Derivatives of what is computed anew."""

from __future__ import annotations

from torch import Tensor


def own_variable(tensor: Tensor, keep_graph: bool) -> Tensor:
    """The tensor as a variable apart from others that may be the same tensor, on its graph where that is kept."""
    return tensor.view_as(tensor) if keep_graph and tensor.requires_grad else tensor.detach().requires_grad_()
