"""What runs as one call: a convolution, a norm or a linear layer with what comes before and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast.nn import folding, linear, norm
from aigc_fast.ops.conv_transpose import nearest
from aigc_fast.ops.conv_transpose.operators import conv_activation, conv_transpose_activation
from aigc_fast.ops.conv_transpose.plan import CHANNELS_LAST, memory_format
from aigc_fast.ops.conv_transpose.surrounded import Before, surrounded
from aigc_fast.runtime.activations import Activation, name_and_slope
from aigc_fast.runtime.autocast import has_autocast, passes_by
from aigc_fast.runtime.lowered import keeps_casts, lowered
from aigc_fast.runtime.modules import kind_of

# What a convolution writes its result through.
ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
# What follows other layers in one call.
ENDINGS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda module: "relu",
    nn.LeakyReLU: lambda module: ("leaky_relu", module.negative_slope),
    nn.Tanh: lambda module: "tanh",
    nn.Sigmoid: lambda module: "sigmoid",
    nn.SiLU: lambda module: "silu",
    nn.GELU: lambda module: "gelu" if module.approximate == "none" else "gelu_tanh",
    nn.ELU: lambda module: ("elu", module.alpha),
}


class Layer(NamedTuple):
    """How a layer runs with the activation that follows it.

    Attributes:
        dimensions: that its input must have; None for any.
        operator: of PyTorch, which autocast may know; it knows of no activation.
        call: takes the layer, its input and the activation.
    """

    dimensions: int | None
    operator: str
    call: Callable[[Any, Tensor, Activation], Tensor]


# By PyTorch's class.
LAYERS = {
    nn.Linear: Layer(None, "linear", linear.transformed),
    nn.GroupNorm: Layer(None, "group_norm", norm.normalized_groups),
    nn.LayerNorm: Layer(None, "layer_norm", norm.normalized_rows),
    nn.InstanceNorm1d: Layer(3, "instance_norm", norm.normalized_channels),
    nn.InstanceNorm2d: Layer(4, "instance_norm", norm.normalized_channels),
    nn.InstanceNorm3d: Layer(5, "instance_norm", norm.normalized_channels),
}


@dataclass(frozen=True)
class Chain:
    """A convolution with the batch norm and the activation that follow it; at least one of the two."""

    convolution: nn.Module
    norm: nn.Module | None
    activation: nn.Module | None

    def parts(self) -> list[nn.Module]:
        """The modules, as they follow each other."""
        return [part for part in (self.convolution, self.norm, self.activation) if part is not None]

    def __len__(self) -> int:
        return len(self.parts())

    def __str__(self) -> str:
        return " + ".join(type(part).__name__ for part in self.parts())

    def tensors(self) -> list[Tensor]:
        """Everything that the folded weight and bias are made from."""
        norm = self.norm
        found = [self.convolution.weight, self.convolution.bias]
        if norm is not None:
            found += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return [tensor for tensor in found if tensor is not None]

    def takes(self, input: Any, hidden: bool) -> bool:
        """Whether one call gives what the modules would give for this input.

        Args:
            input: of the convolution.
            hidden: whether nothing but a module that leaves it as it is sees the output. For the gradient LeakyReLU
                keeps its input, the fused call its output, which must not be written to.
        """
        if type(input) is not Tensor or input.dim() != self.convolution.weight.dim():
            return False
        if self.norm is not None and (self.norm.training or self.norm.running_mean is None):
            return False
        if input.is_meta or (has_autocast(input) and not keeps_casts(input, *self.tensors())):
            return False
        if self.norm is None and self.slope >= 0 and (hidden or not self.keeps_input):
            return True
        return not self.wants_gradient(input)

    def wants_gradient(self, input: Tensor) -> bool:
        """Whether the gradient to the input or to any of `tensors` is wanted."""
        wanted = input.requires_grad or any(tensor.requires_grad for tensor in self.tensors())
        return wanted and torch.is_grad_enabled()

    @property
    def runs_in_training(self) -> bool:
        """Whether it can be one call where gradients are wanted too."""
        return self.norm is None

    @property
    def slope(self) -> float:
        """As `slope_of`; where it is negative, the output does not tell which values were."""
        return slope_of(self.activation)

    @property
    def keeps_input(self) -> bool:
        """Whether the activation alone would keep its input for the gradient, and leave its output to be written to."""
        return type(self.activation) is nn.LeakyReLU and not self.activation.inplace

    def turns(self, input: Tensor) -> bool:
        """Whether `run` can write channels_last where the modules would not: the folded weight is its own."""
        weight = self.convolution.weight
        possible = self.norm is not None and weight.dim() in CHANNELS_LAST
        return possible and memory_format(input, weight) == torch.contiguous_format

    def run(self, input: Tensor, channels_last: bool) -> Tensor:
        """Convolution, norm and activation in one call, in channels_last where `turns` allows it.

        One by one where there is no room to keep the folded weight.
        """
        found = self.weights(input, channels_last)
        if found is None:
            return apart(self.parts(), input)
        return activated(self.convolution, *_as_autocast_has(input, *found), self.activation)

    def weights(self, input: Tensor, channels_last: bool) -> tuple[Tensor, Tensor | None] | None:
        """The convolution's weight and bias, with the norm folded in; None where there is no room to keep them."""
        conv = self.convolution
        if self.norm is None:
            return conv.weight, conv.bias
        pixels = input.numel() // input.shape[1]
        return folding.folded(conv.weight, conv.bias, _statistics(self.norm), *_kind(conv), pixels, channels_last)


@dataclass(frozen=True)
class Entered:
    """What the input of a chain, or of a convolution alone, meets: a mirrored border, an activation or both."""

    border: nn.Module | None
    entry: nn.Module | None
    chain: Chain

    def entries(self) -> list[nn.Module]:
        """The modules before the chain, as they follow each other."""
        return [part for part in (self.border, self.entry) if part is not None]

    def __len__(self) -> int:
        return len(self.entries()) + len(self.chain)

    def __str__(self) -> str:
        return " + ".join(type(part).__name__ for part in (*self.entries(), *self.chain.parts()))

    @property
    def runs_in_training(self) -> bool:
        """See `Chain.runs_in_training`."""
        return False

    def takes(self, input: Any, hidden: bool) -> bool:
        """Whether the modules may run together for this input: without gradients; see `Chain.takes`."""
        chain = self.chain
        return chain.takes(input, hidden) and not has_autocast(input) and not chain.wants_gradient(input)

    def turns(self, input: Tensor) -> bool:
        """See `Chain.turns`."""
        return self.chain.turns(input)

    def run(self, input: Tensor, channels_last: bool) -> Tensor:
        """All in one call, or the modules before the chain one by one where that is faster."""
        conv, activation = self.chain.convolution, self.chain.activation
        weights = self.chain.weights(input, channels_last)
        if weights is None:
            return apart([*self.entries(), *self.chain.parts()], input)
        before = Before(*_entry(self.entry), () if self.border is None else tuple(self.border.padding))
        found = run_surrounded(conv, input, *weights, before, written(activation))
        if found is None:
            return activated(conv, apart(self.entries(), input), *weights, activation)
        return found


def run_surrounded(
    conv: nn.Module,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Before,
    after: tuple[str, float] = ("none", 0.0),
    added: Tensor | None = None,
) -> Tensor | None:
    """`surrounded` of a convolution with these weights."""
    precision = getattr(conv, "float32_precision", None)
    return surrounded(input, weight, bias, sizes_of(conv), conv.transposed, before, after, added, precision)


def _as_autocast_has(input: Tensor, weight: Tensor, bias: Tensor | None) -> Sequence[Tensor | None]:
    if not has_autocast(input):
        return input, weight, bias
    return lowered(input, weight, bias, input.numel() // input.shape[1])


def slope_of(activation: nn.Module | None) -> float:
    """LeakyReLU's slope for negative values; 0 for others."""
    return getattr(activation, "negative_slope", 0.0)


def _statistics(norm: nn.Module) -> folding.Statistics:
    return folding.Statistics(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def _kind(conv: nn.Module) -> tuple[bool, int]:
    return conv.transposed, conv.groups


def sizes_of(conv: nn.Module) -> tuple[Any, ...]:
    """Stride, padding, output_padding of a transposed convolution, dilation and groups."""
    extra = (conv.output_padding,) if conv.transposed else ()
    return conv.stride, conv.padding, *extra, conv.dilation, conv.groups


def written(activation: nn.Module | None) -> tuple[str, float]:
    """An activation as the ops write it: its name and slope."""
    return "none" if activation is None else ACTIVATIONS[type(activation)], slope_of(activation)


def _entry(activation: nn.Module | None) -> tuple[str, float]:
    return ("none", 0.0) if activation is None else name_and_slope(ENDINGS[type(activation)](activation))


def activated(
    conv: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module | None
) -> Tensor:
    """The convolution, with these weights, and the activation in one call."""
    fused = conv_transpose_activation if conv.transposed else conv_activation
    arguments = input, weight, bias, *sizes_of(conv), *written(activation)
    return fused(*arguments, precision=getattr(conv, "float32_precision", None))


@dataclass(frozen=True)
class Doubled:
    """Nearest-neighbour upsampling by two and what its output meets: a convolution alone, or a chain that begins so."""

    upsampling: nn.Module
    chain: Chain

    def __len__(self) -> int:
        return 1 + len(self.chain)

    def __str__(self) -> str:
        return f"{type(self.upsampling).__name__} + {self.chain}"

    @property
    def runs_in_training(self) -> bool:
        """See `Chain.runs_in_training`."""
        return self.chain.runs_in_training

    def takes(self, input: Any, hidden: bool) -> bool:
        """Whether one call gives what the modules would give for this input, and sooner; see `Chain.takes`."""
        chain = self.chain
        if not chain.takes(input, hidden):
            return False
        return nearest.gains(input, chain.convolution.weight, chain.wants_gradient(input))

    def turns(self, input: Tensor) -> bool:
        """Never: the output lies as that of the modules."""
        return False

    def run(self, input: Tensor, channels_last: bool) -> Tensor:
        """A transposed convolution of what is not doubled; one by one where there is no room to keep its weight."""
        conv, activation = self.chain.convolution, self.chain.activation
        weights = self._weights(input)
        if weights is None:
            return apart([self.upsampling, *self.chain.parts()], input)
        sizes = *nearest.geometry(conv.weight.dim() - 2), conv.groups
        arguments = *_as_autocast_has(input, *weights), *sizes, *written(activation)
        return conv_transpose_activation(*arguments, precision=getattr(conv, "float32_precision", None))

    def _weights(self, input: Tensor) -> tuple[Tensor, Tensor | None] | None:
        groups = self.chain.convolution.groups
        found = self.chain.weights(input, False)
        if found is None:
            return None
        weight, bias = found
        if self.chain.wants_gradient(input):
            return nearest.doubling_weight(weight, groups), bias
        weight = folding.doubled(weight, groups, input.numel() // input.shape[1])
        return None if weight is None else (weight, bias)


@dataclass(frozen=True)
class Ended:
    """A layer of `LAYERS` with the activation that follows it; no more than `Chain` asks of the output."""

    layer: nn.Module
    activation: nn.Module

    def __len__(self) -> int:
        return 2

    def __str__(self) -> str:
        return f"{type(self.layer).__name__} + {type(self.activation).__name__}"

    @property
    def runs_in_training(self) -> bool:
        """See `Chain.runs_in_training`."""
        return kind_of(self.layer) is not nn.Linear

    def takes(self, input: Any, hidden: bool) -> bool:
        """Whether one call gives what the modules would give for this input; see `Chain.takes`."""
        if type(input) is not Tensor or input.is_meta:
            return False
        kind = kind_of(self.layer)
        dimensions, operator, _ = LAYERS[kind]
        if has_autocast(input) and not passes_by(operator, input.device.type):
            return False
        # Of a linear layer whose gradients are wanted PyTorch keeps no more in two calls.
        if kind is nn.Linear and torch.is_grad_enabled() and _wants_gradient(input, self.layer):
            return False
        return dimensions in (None, input.dim())

    def turns(self, input: Tensor) -> bool:
        """Never: the output lies as the input does."""
        return False

    def run(self, input: Tensor, channels_last: bool) -> Tensor:
        """The layer and the activation in one call."""
        call = LAYERS[kind_of(self.layer)].call
        return call(self.layer, input, ENDINGS[type(self.activation)](self.activation))


def _wants_gradient(input: Tensor, layer: nn.Module) -> bool:
    return input.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())


def apart(modules: list[nn.Module], input: Any) -> Any:
    """What modules make of an input in turn, one by one."""
    for module in modules:
        input = module(input)
    return input
