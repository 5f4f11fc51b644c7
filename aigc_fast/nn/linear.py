"""Linear layers on aigc_fast's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.nn.drop_in import drop_in
from aigc_fast.runtime.activations import Activation


def transformed(module: torch.nn.Linear, input: Tensor, activation: Activation = None) -> Tensor:
    """What the module and the activation make of the input."""
    precision = getattr(module, "float32_precision", None)
    return functional.linear(input, module.weight, module.bias, activation, precision=precision)


@drop_in
class Linear(torch.nn.Linear):
    """`torch.nn.Linear`: the same constructor, parameters, `state_dict` keys and results.

    See `aigc_fast.functional.linear`.
    """

    float32_precision: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        """input @ weight.T + bias; input (..., in_features)."""
        return transformed(self, input)
