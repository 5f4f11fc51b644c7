"""Linear layers in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.runtime.activations import FUNCTIONS, IN_PLACE


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, slope: float) -> Tensor:
    """activation(input @ weight.T + bias)."""
    return FUNCTIONS[activation](TF.linear(input, weight, bias), slope)


def linear_in_place(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, slope: float) -> Tensor:
    """The same for values alone: the activation writes over what it reads, where PyTorch has it so."""
    return IN_PLACE.get(activation, FUNCTIONS[activation])(TF.linear(input, weight, bias), slope)
