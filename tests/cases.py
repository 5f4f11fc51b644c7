"""Shapes of recursions, random numbers, norms and linear layers, shared by the tests and by bench/."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import aigc_fast.functional as AF
from aigc_fast.runtime.activations import FUNCTIONS, name_and_slope


@dataclass(frozen=True)
class Recursion:
    """One shape of an all-pole recursion.

    Attributes:
        batch, length, order: B, T and p.
        kind: of the coefficients: "shared" (p,), "series" (B, p) or "varying" (B, T, p).
        state: whether there are values before the first step.
    """

    batch: int
    length: int
    order: int
    kind: str = "shared"
    state: bool = False

    def __str__(self) -> str:
        return f"{self.batch}.{self.length}.{self.order}-{self.kind}" + ("-state" if self.state else "")

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """x, the coefficients and, where there is one, the state."""
        lead = {"shared": (), "series": (self.batch,), "varying": (self.batch, self.length)}[self.kind]
        shapes = [(self.batch, self.length), (*lead, self.order), *([(self.batch, self.order)] if self.state else [])]
        x, coeffs, *state = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
        if self.kind == "varying":
            # Poles that stay near each other: a product of steps that have nothing in common grows.
            coeffs = coeffs[:, :1] + 0.02 * coeffs
        return [tensor.to(dtype) for tensor in (x, stable_coeffs(coeffs), *state)]


def stable_coeffs(seeds: Tensor, radius: float = 0.9) -> Tensor:
    """Coefficients (..., p) of poles within the radius, in pairs, and their mean where the order is odd."""
    order = seeds.shape[-1]
    angles = 0.2 + 2.8 * torch.sigmoid(seeds[..., : order // 2])
    radii = radius * torch.sigmoid(2 * seeds[..., order // 2 : order // 2 * 2] + 1)
    polynomial = torch.ones(*seeds.shape[:-1], 1, dtype=seeds.dtype)
    factors = [
        torch.stack([torch.ones_like(r), -2 * r * a.cos(), r * r], -1)
        for r, a in zip(radii.unbind(-1), angles.unbind(-1), strict=True)
    ]
    if order % 2:
        factors.append(torch.stack([torch.ones_like(seeds[..., 0]), seeds[..., 0].tanh() * 0.5], -1))
    for factor in factors:
        grown = polynomial.shape[-1] + factor.shape[-1] - 1
        product = polynomial.new_zeros(*seeds.shape[:-1], grown)
        for i in range(factor.shape[-1]):
            product[..., i : i + polynomial.shape[-1]] += factor[..., i : i + 1] * polynomial
        polynomial = product
    return -polynomial[..., 1:]


RECURSIONS = [
    Recursion(1, 1, 1),
    Recursion(3, 17, 2, state=True),
    Recursion(2, 113, 3, "series"),
    Recursion(5, 130, 6, "series", True),
    Recursion(64, 300, 7),
    Recursion(9, 64, 24, state=True),
    Recursion(19, 257, 8, "series", True),
    Recursion(2, 5, 9, state=True),
    # Long enough to be cut into parts.
    Recursion(1, 5000, 2, state=True),
    Recursion(1, 20_011, 16),
    Recursion(2, 9000, 30, "series", True),
    Recursion(3, 4097, 5, "series"),
    Recursion(1, 3000, 70, state=True),
    # Of every step.
    Recursion(1, 1, 1, "varying"),
    Recursion(2, 5, 9, "varying", True),
    Recursion(3, 83, 1, "varying", True),
    Recursion(2, 700, 7, "varying"),
    Recursion(4, 301, 22, "varying", True),
    Recursion(1, 1000, 40, "varying", True),
]

# Random numbers: around the width of a vector, of a step and of a tile.
RANDOM_SIZES = [1, 3, 17, 31, 32, 113, 1023, 1025, 100_003]

# mu and logvar: rows shorter and longer than a vector and a tile, and not a multiple of a Philox block.
LATENTS = [(1, 17), (113,), (64, 2), (128, 20), (7, 113), (3, 1023), (2, 3, 5, 7), (1, 3000), (2, 5001), (1025, 1)]

# What bench/ times: a discriminator's feature maps, a Transformer's residual, a small hidden layer; latents of
# variational auto-encoders from two dimensions to an image's.
DROPOUTS = {"feature maps": ((64, 64, 28, 28), 0.3), "residual": ((4, 256, 768), 0.1), "small": ((64, 128), 0.5)}
BENCH_LATENTS = {"latent2": (64, 2), "mlp20": (128, 20), "wide512": (64, 512), "sd64": (16, 4, 64, 64)}


@dataclass(frozen=True)
class Norm:
    """A norm and the activation that follows.

    Attributes:
        function: "group_norm", "instance_norm" or "layer_norm".
        shape: of the input.
        sizes: the number of groups, or the dimensions at the end that share a mean.
        affine: how many of weight and bias there are.
        activation: as the functions take it.
    """

    function: str
    shape: tuple[int, ...]
    sizes: int = 1
    affine: int = 2
    activation: Any = None

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape[-self.sizes :] if self.function == "layer_norm" else self.shape[1:2]

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Input, weight and bias, the first off zero by more than its deviation."""
        parameters = [torch.randn(self.parameter_shape) for _ in range(self.affine)]
        return [tensor.to(dtype) for tensor in (torch.randn(self.shape) + 3, *parameters)]

    def call(self, home: Any, input: Tensor, *affine: Tensor, **more: Any) -> Tensor:
        """The function of this name in a module, with its further arguments."""
        options = {**dict(zip(("weight", "bias"), affine, strict=False)), "eps": 1e-3, **more}
        if self.function == "instance_norm":
            return home.instance_norm(input, **options)
        if self.function == "layer_norm":
            return home.layer_norm(input, self.parameter_shape, **options)
        return home.group_norm(input, self.sizes, **options)

    def ours(self, *tensors: Tensor) -> Tensor:
        return self.call(AF, *tensors, activation=self.activation)

    def theirs(self, *tensors: Tensor) -> Tensor:
        name, slope = name_and_slope(self.activation)
        return FUNCTIONS[name](self.call(torch.nn.functional, *tensors), slope)

    def __str__(self) -> str:
        activation = str(self.activation).strip("()").replace("'", "").replace(", ", "-")
        return f"{'x'.join(map(str, self.shape))}-{self.sizes}-{self.affine}-{activation}"


# Whole vectors and parts of them, one pixel, planes and groups beyond a block, few groups of many elements; every
# activation.
NORMS = [
    Norm("group_norm", (2, 6, 5, 3), 3, 2, "silu"),
    Norm("group_norm", (3, 32), 4, 2, "gelu"),
    Norm("group_norm", (2, 17, 113), 1, 1, "tanh"),
    Norm("group_norm", (1, 4, 1, 1023), 2, 0, ("leaky_relu", 0.2)),
    Norm("group_norm", (1, 3, 70, 97), 1, 2, "gelu_tanh"),
    Norm("group_norm", (2, 40, 3, 5, 4), 8, 2, "sigmoid"),
    Norm("group_norm", (5, 64, 8, 8), 32),
    Norm("instance_norm", (2, 6, 5, 3), 1, 2, "relu"),
    Norm("instance_norm", (3, 2, 1023), 1, 0),
    Norm("instance_norm", (1, 5, 65, 67), 1, 0, ("elu", 0.7)),
    Norm("instance_norm", (2, 3, 4, 5, 3), 1, 2, "silu"),
    Norm("layer_norm", (3, 2, 5, 7), 2, 2, ("elu", 0.5)),
    Norm("layer_norm", (70, 17), 1, 2, "gelu"),
    Norm("layer_norm", (1, 1023), 1, 1),
    Norm("layer_norm", (113, 1), 1, 2),
    Norm("layer_norm", (2, 9000), 1, 2, "silu"),
    Norm("layer_norm", (2, 3, 300, 250), 3, 0, "gelu_tanh"),
]
FEW_NORMS = [NORMS[i] for i in (0, 2, 4, 7, 11, 12)]


@dataclass(frozen=True)
class Linear:
    """A linear layer and the activation that follows.

    Attributes:
        lead: the input's dimensions but the last.
        inputs, outputs: features.
        biased: whether there is a bias.
        activation: as the function takes it.
    """

    lead: tuple[int, ...]
    inputs: int
    outputs: int
    biased: bool = True
    activation: Any = None

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Input, weight and, where there is one, bias, that make outputs of order one."""
        input, weight = torch.randn(*self.lead, self.inputs), torch.randn(self.outputs, self.inputs)
        bias = [torch.randn(self.outputs)] if self.biased else []
        return [tensor.to(dtype) for tensor in (input, weight / math.sqrt(self.inputs), *bias)]

    def ours(self, *tensors: Tensor) -> Tensor:
        return AF.linear(*tensors, activation=self.activation)

    def theirs(self, *tensors: Tensor) -> Tensor:
        name, slope = name_and_slope(self.activation)
        return FUNCTIONS[name](torch.nn.functional.linear(*tensors), slope)

    def __str__(self) -> str:
        activation = str(self.activation).strip("()").replace("'", "").replace(", ", "-")
        return f"{'x'.join(map(str, self.lead))}-{self.inputs}-{self.outputs}-{self.biased}-{activation}"


# One row, fewer rows than a tile, blocks of rows and a rest; depths of one number, odd, and beyond a block; columns of
# parts of vectors and of panels.
LINEARS = [
    Linear((3, 7), 5, 6, True, "silu"),
    Linear((1,), 113, 130, True, "gelu"),
    Linear((), 17, 33),
    Linear((17,), 1, 65, False),
    Linear((50,), 513, 64, True, "gelu_tanh"),
    Linear((2, 113), 64, 1, True, "tanh"),
    Linear((100,), 96, 259, True, ("leaky_relu", 0.1)),
    Linear((6,), 1023, 17, True, ("elu", 0.4)),
    Linear((2, 3, 4), 32, 48, False, "sigmoid"),
]
FEW_LINEARS = [LINEARS[i] for i in (0, 1, 4, 6)]
