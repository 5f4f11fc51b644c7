"""Where PyTorch's own linear layer is as fast or faster: what automatic choice leaves to it, and why."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from aigc_fast.ops.linear.limits import (
    FEW_INPUTS_BFLOAT16,
    FOREIGN_LAYER_PRODUCTS,
    FOREIGN_LAYER_WEIGHT,
    FOREIGN_PRODUCTS,
    FOREIGN_PRODUCTS_OF_GRADIENTS,
    FOREIGN_WEIGHT,
    LARGE_WEIGHT,
    LEAST_WEIGHT,
    LIGHT_PRODUCTS,
    LIGHT_PRODUCTS_BFLOAT16,
    MANY_OUTPUTS_BFLOAT16,
    ROWS_OF_LARGE,
    ROWS_OF_OTHERS,
)
from aigc_fast.runtime import native, tuning
from aigc_fast.runtime.backends import is_automatic
from aigc_fast.runtime.machine import is_intels


def is_light(input: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's call costs less than ours, whatever the kernel."""
    products = input.numel() * weight.shape[0]
    return products < (LIGHT_PRODUCTS_BFLOAT16 if input.dtype == torch.bfloat16 else LIGHT_PRODUCTS)


def is_pytorchs_at_once(input: Tensor, weight: Tensor) -> bool:
    """Whether a call is PyTorch's in any case; the public function asks this first."""
    if is_light(input, weight):
        return True
    if tuning.knows("linear"):
        return False
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad) and leave(input, weight) is not None:
        return True
    rows = input.numel() // (weight.shape[-1] or 1)
    return input.dtype is torch.float32 and not _floats_win(rows, weight.numel())


def _floats_win(rows: int, size: int) -> bool:
    """Whether so many rows of float32 by a weight of this size are ours."""
    if has_foreign_products():
        return size >= LEAST_WEIGHT or (size >= FOREIGN_WEIGHT and rows * size >= FOREIGN_PRODUCTS)
    taken = rows in ROWS_OF_LARGE if size >= LARGE_WEIGHT else rows in ROWS_OF_OTHERS and size >= LEAST_WEIGHT
    return taken and native.has_wide_vectors()


def _few_make_many(input: Tensor, weight: Tensor) -> bool:
    depth = input.shape[-1]
    return depth < FEW_INPUTS_BFLOAT16 and input.numel() * weight.shape[0] >= depth * MANY_OUTPUTS_BFLOAT16


def has_foreign_products() -> bool:
    """Whether PyTorch multiplies float32 by MKL on another maker's processor than MKL's."""
    return native.has_wide_vectors() and torch.backends.mkl.is_available() and not is_intels()


def wins_layers(input: Tensor, weight: Tensor) -> bool:
    """Whether ours is so much faster that a layer of several had better run on its parts than as PyTorch's one call."""
    if not (input.is_cpu and input.dtype is torch.float32 and is_automatic() and has_foreign_products()):
        return False
    return input.numel() * weight.shape[0] >= FOREIGN_LAYER_PRODUCTS or weight.numel() >= FOREIGN_LAYER_WEIGHT


def slower(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, slope: float) -> str | None:
    """Why PyTorch's forward is preferred, or None."""
    if is_light(input, weight):
        return "small: PyTorch's call costs less"
    if input.dtype == torch.bfloat16:
        if native.level() != "avx512_bf16":
            return f"bfloat16 on {native.level()}: not measured, PyTorch's own"
        if not is_intels() and _few_make_many(input, weight):
            return f"{input.shape[-1]} inputs of each output: PyTorch's product is faster"
        return None
    rows, size = prod(input.shape[:-1]), weight.numel()
    if _floats_win(rows, size):
        return None
    return f"{rows} rows of float32 by {size} weights: PyTorch's product is as fast as the processor or its memory"


def leave(input: Tensor, weight: Tensor, *rest: object) -> str | None:
    """Why PyTorch had better have a linear layer with all its gradients, or None."""
    large = weight.numel() >= FOREIGN_WEIGHT and input.numel() * weight.shape[0] >= FOREIGN_PRODUCTS_OF_GRADIENTS
    if large and input.dtype == torch.float32 and has_foreign_products():
        return None
    return "with gradients the weights change from call to call: PyTorch's product takes them as they lie"
