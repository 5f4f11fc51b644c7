"""Activations at the end of an op: their names, as csrc knows them, and in plain PyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.runtime import native

Activation = str | tuple[str, float] | None

# Functions of an input and a slope: leaky_relu's negative slope, or elu's alpha.
FUNCTIONS = {
    "none": lambda x, slope: x,
    "relu": lambda x, slope: torch.relu(x),
    "leaky_relu": lambda x, slope: TF.leaky_relu(x, slope),
    "tanh": lambda x, slope: torch.tanh(x),
    "sigmoid": lambda x, slope: torch.sigmoid(x),
    "silu": lambda x, slope: TF.silu(x),
    "gelu": lambda x, slope: TF.gelu(x),
    "gelu_tanh": lambda x, slope: TF.gelu(x, approximate="tanh"),
    "elu": lambda x, slope: TF.elu(x, slope),
}
IN_PLACE = {
    "relu": lambda x, slope: torch.relu_(x),
    "leaky_relu": lambda x, slope: TF.leaky_relu_(x, slope),
    "tanh": lambda x, slope: torch.tanh_(x),
    "sigmoid": lambda x, slope: torch.sigmoid_(x),
    "silu": lambda x, slope: TF.silu(x, inplace=True),
    "elu": lambda x, slope: TF.elu_(x, slope),
}
# The gradient of an activation's input from that of its output and the output itself; the slope is at least 0.
GRADIENTS_FROM_OUTPUT = {
    "none": lambda gradient, output, slope: gradient,
    "relu": lambda gradient, output, slope: torch.ops.aten.threshold_backward(gradient, output, 0),
    "leaky_relu": lambda gradient, output, slope: torch.ops.aten.leaky_relu_backward(gradient, output, slope, True),
    "tanh": lambda gradient, output, slope: torch.ops.aten.tanh_backward(gradient, output),
    "sigmoid": lambda gradient, output, slope: torch.ops.aten.sigmoid_backward(gradient, output),
}
CODES = dict(zip(FUNCTIONS, native.codes("activations", *map(str.upper, FUNCTIONS)), strict=True))
_SLOPES = {"leaky_relu": 0.01, "elu": 1.0}
_NONE = "none", 0.0


def _sigmoid_weighted(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return y * (1 + x * (1 - y))


def _normal_weighted(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _tanh_weighted(x: Tensor) -> Tensor:
    factor, cube = math.sqrt(2 / math.pi), 0.044715
    y = torch.tanh(factor * (x + cube * x**3))
    return 0.5 * (1 + y + x * (1 - y * y) * factor * (1 + 3 * cube * x * x))


# The derivatives at an input, themselves differentiable.
DERIVATIVES = {
    "none": lambda x, slope: torch.ones_like(x),
    "relu": lambda x, slope: (x > 0).to(x.dtype),
    "leaky_relu": lambda x, slope: torch.where(x > 0, torch.ones_like(x), slope),
    "tanh": lambda x, slope: 1 - torch.tanh(x).square(),
    "sigmoid": lambda x, slope: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    "silu": lambda x, slope: _sigmoid_weighted(x),
    "gelu": lambda x, slope: _normal_weighted(x),
    "gelu_tanh": lambda x, slope: _tanh_weighted(x),
    "elu": lambda x, slope: torch.where(x > 0, torch.ones_like(x), slope * torch.exp(x.clamp_max(0))),
}


def told_by_output(name: str, slope: float) -> bool:
    """Whether the gradient follows from the activation's output alone."""
    return name in GRADIENTS_FROM_OUTPUT and slope >= 0


def name_and_slope(activation: Activation) -> tuple[str, float]:
    """What `activation` says: a name of `FUNCTIONS`, a pair of one and a slope, or None.

    Raises:
        ValueError: for anything else.
    """
    if activation is None:
        return _NONE
    name, *rest = (activation,) if isinstance(activation, str) else _pair(activation)
    if name not in FUNCTIONS or (rest and name not in _SLOPES):
        raise _unknown(activation)
    return name, float(rest[0]) if rest else _SLOPES.get(name, 0.0)


def _pair(activation: Any) -> tuple[Any, ...]:
    if not (isinstance(activation, tuple) and len(activation) == 2 and isinstance(activation[1], (int, float))):
        raise _unknown(activation)
    return activation


def _unknown(activation: Any) -> ValueError:
    names = ", ".join(map(repr, list(FUNCTIONS)[1:]))
    return ValueError(
        f"activation={activation!r}: expected None, one of {names}, or ('leaky_relu' or 'elu', its slope)"
    )
