"""Norms and their gradients in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.runtime.activations import DERIVATIVES, FUNCTIONS
from aigc_fast.runtime.dtypes import computing_dtype


def _fitting(input: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """The parameters in a dtype that PyTorch's norm of this input takes: float32 beside narrower ones, or the same."""
    dtypes = {parameter.dtype for parameter in parameters if parameter is not None}
    computed = computing_dtype(input.dtype)
    dtype = input.dtype if dtypes <= {input.dtype} else computed
    return [None if parameter is None else parameter.to(dtype) for parameter in parameters]


def group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, slope: float
) -> Tensor:
    """Each group of channels of each of the batch less its mean, over its standard deviation, and what follows."""
    weight, bias = _fitting(input, weight, bias)
    return FUNCTIONS[activation](TF.group_norm(input, groups, weight, bias, eps), slope)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str,
    slope: float,
) -> Tensor:
    """PyTorch's norm of each channel of each of the batch, and what follows."""
    running = running_mean, running_var
    normal = TF.instance_norm(input, *running, *_fitting(input, weight, bias), use_input_stats, momentum, eps)
    return FUNCTIONS[activation](normal, slope)


def layer_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_shape: Sequence[int],
    eps: float,
    activation: str,
    slope: float,
) -> Tensor:
    """The last dimensions less their mean, over their standard deviation, and what follows."""
    weight, bias = _fitting(input, weight, bias)
    return FUNCTIONS[activation](TF.layer_norm(input, normalized_shape, weight, bias, eps), slope)


def _backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    together: Sequence[int],
    spread: Sequence[int],
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of tensors in which `together` are the dimensions that share a mean, and `spread` those that share a weight."""
    var, mean = torch.var_mean(input, together, correction=0, keepdim=True)
    inverse = (var + eps).rsqrt()
    normal = (input - mean) * inverse
    scaled = normal if weight is None else normal * weight
    grad = grad * DERIVATIVES[activation](scaled if bias is None else scaled + bias, slope)
    of_normal = grad if weight is None else grad * weight
    lost = normal * (of_normal * normal).mean(together, keepdim=True) + of_normal.mean(together, keepdim=True)
    none = grad.new_empty(0)
    return (
        inverse * (of_normal - lost),
        none if weight is None else (grad * normal).sum(spread),
        none if bias is None else grad.sum(spread),
    )


def _in_dtypes(
    found: Sequence[Tensor], input: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    like = input, input if weight is None else weight, input if bias is None else bias
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(found, like, strict=True))


def group_norm_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to input, weight and bias; without elements for what is not there."""
    (images, channels), compute = input.shape[:2], computing_dtype(input.dtype)
    grouped = images, groups, channels // groups, prod(input.shape[2:])
    tensors = [tensor.to(compute).reshape(grouped) for tensor in (grad, input)]
    affine = [None if t is None else t.to(compute).reshape(1, groups, -1, 1) for t in (weight, bias)]
    of_input, of_weight, of_bias = _backward(*tensors, *affine, (2, 3), (0, 3), eps, activation, slope)
    found = of_input.reshape(input.shape), of_weight.reshape(-1), of_bias.reshape(-1)
    return _in_dtypes(found, input, weight, bias)


def layer_norm_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_shape: Sequence[int],
    eps: float,
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to input, weight and bias; without elements for what is not there."""
    columns, compute = prod(normalized_shape), computing_dtype(input.dtype)
    rows = prod(input.shape[: input.dim() - len(normalized_shape)])
    tensors = [tensor.to(compute).reshape(rows, columns) for tensor in (grad, input)]
    affine = [None if t is None else t.to(compute).reshape(columns) for t in (weight, bias)]
    of_input, *of_affine = _backward(*tensors, *affine, (1,), (0,), eps, activation, slope)
    shaped = [
        gradient if parameter is None else gradient.reshape(parameter.shape)
        for gradient, parameter in zip(of_affine, (weight, bias), strict=True)
    ]
    return _in_dtypes((of_input.reshape(input.shape), *shaped), input, weight, bias)
