"""`torch.nn.Sequential` that runs convolutions, and norms, with what follows them as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from aigc_fast.nn import conv_transpose, folding, linear, norm
from aigc_fast.nn.drop_in import drop_in
from aigc_fast.nn.overrides import Methods, calls_are_observed, is_unwatched
from aigc_fast.nn.random import Dropout
from aigc_fast.ops.conv_transpose import nearest
from aigc_fast.ops.conv_transpose.operators import conv_activation, conv_transpose_activation
from aigc_fast.ops.conv_transpose.plan import CHANNELS_LAST, memory_format
from aigc_fast.ops.conv_transpose.surrounded import NOTHING, Before, surrounded
from aigc_fast.runtime.activations import Activation, name_and_slope
from aigc_fast.runtime.autocast import has_autocast, passes_by
from aigc_fast.runtime.imports import after_import
from aigc_fast.runtime.lowered import keeps_casts, lowered
from aigc_fast.runtime.modules import kind_of, stand_ins
from aigc_fast.runtime.operator import is_traced_by_dynamo, plain_eager

_NAMES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_CONVOLUTIONS = {getattr(home, name) for home in (nn, conv_transpose) for name in _NAMES}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
# What follows other layers in one call.
_ENDINGS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda module: "relu",
    nn.LeakyReLU: lambda module: ("leaky_relu", module.negative_slope),
    nn.Tanh: lambda module: "tanh",
    nn.Sigmoid: lambda module: "sigmoid",
    nn.SiLU: lambda module: "silu",
    nn.GELU: lambda module: "gelu" if module.approximate == "none" else "gelu_tanh",
    nn.ELU: lambda module: ("elu", module.alpha),
}
# By PyTorch's class: how many dimensions the input must have, or any, and the call with what follows.
_LAYERS: dict[type[nn.Module], tuple[int | None, Callable[[Any, Tensor, Activation], Tensor]]] = {
    nn.Linear: (None, linear.transformed),
    nn.GroupNorm: (None, norm.normalized_groups),
    nn.LayerNorm: (None, norm.normalized_rows),
    nn.InstanceNorm1d: (3, norm.normalized_channels),
    nn.InstanceNorm2d: (4, norm.normalized_channels),
    nn.InstanceNorm3d: (5, norm.normalized_channels),
}
# What autocast may know of these; it knows of no activation.
_OPERATORS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
    nn.InstanceNorm1d: "instance_norm",
    nn.InstanceNorm2d: "instance_norm",
    nn.InstanceNorm3d: "instance_norm",
}
_HEADS = _LAYERS.keys() | {ours for ours, theirs in stand_ins.items() if theirs in _LAYERS}
# By the dimensions that their padding is told of.
_BORDERS = {nn.ReflectionPad1d: 1, nn.ReflectionPad2d: 2, nn.ReflectionPad3d: 3}
_DOUBLINGS = {nn.Upsample, nn.UpsamplingNearest2d}
# Modules that read their input only, that return it or a view of it, and that do so where they drop nothing.
_READERS = _CONVOLUTIONS | _HEADS | {*_NORMS.values()} | _DOUBLINGS | _BORDERS.keys()
_VIEWS = {nn.Flatten, nn.Unflatten, nn.Identity}
_DROPOUTS = {nn.Dropout, nn.Dropout2d, nn.Dropout3d, Dropout}
_NARROW = 4
# A torch that does not tell exports from compilation runs the modules one by one in both.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: True)
_KNOWN = Methods(_READERS | _VIEWS | _DROPOUTS | _ENDINGS.keys())


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
    def slope(self) -> float:
        """LeakyReLU's slope for negative values; where it is negative, the output does not tell which they were."""
        return _slope(self.activation)

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
            return _apart(self.parts(), input)
        return _activated(self.convolution, *_as_autocast_has(input, *found), self.activation)

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
            return _apart([*self.entries(), *self.chain.parts()], input)
        before = Before(*_entry(self.entry), () if self.border is None else tuple(self.border.padding))
        found = run_surrounded(conv, input, *weights, before, _written(activation))
        if found is None:
            return _activated(conv, _apart(self.entries(), input), *weights, activation)
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
    return surrounded(input, weight, bias, _sizes(conv), conv.transposed, before, after, added, precision)


def _as_autocast_has(input: Tensor, weight: Tensor, bias: Tensor | None) -> Sequence[Tensor | None]:
    if not has_autocast(input):
        return input, weight, bias
    return lowered(input, weight, bias, input.numel() // input.shape[1])


def _slope(activation: nn.Module | None) -> float:
    return getattr(activation, "negative_slope", 0.0)


def _statistics(norm: nn.Module) -> folding.Statistics:
    return folding.Statistics(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def _kind(conv: nn.Module) -> tuple[bool, int]:
    return conv.transposed, conv.groups


def _sizes(conv: nn.Module) -> tuple[Any, ...]:
    """Stride, padding, output_padding of a transposed convolution, dilation and groups."""
    extra = (conv.output_padding,) if conv.transposed else ()
    return conv.stride, conv.padding, *extra, conv.dilation, conv.groups


def _written(activation: nn.Module | None) -> tuple[str, float]:
    """An activation as the ops write it: its name and slope."""
    return "none" if activation is None else _ACTIVATIONS[type(activation)], _slope(activation)


def _entry(activation: nn.Module | None) -> tuple[str, float]:
    return ("none", 0.0) if activation is None else name_and_slope(_ENDINGS[type(activation)](activation))


def _activated(
    conv: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module | None
) -> Tensor:
    """The convolution, with these weights, and the activation in one call."""
    fused = conv_transpose_activation if conv.transposed else conv_activation
    arguments = input, weight, bias, *_sizes(conv), *_written(activation)
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
            return _apart([self.upsampling, *self.chain.parts()], input)
        sizes = *nearest.geometry(conv.weight.dim() - 2), conv.groups
        arguments = *_as_autocast_has(input, *weights), *sizes, *_written(activation)
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
    """A layer of `_LAYERS` with the activation that follows it; no more than `Chain` asks of the output."""

    layer: nn.Module
    activation: nn.Module

    def __len__(self) -> int:
        return 2

    def __str__(self) -> str:
        return f"{type(self.layer).__name__} + {type(self.activation).__name__}"

    def takes(self, input: Any, hidden: bool) -> bool:
        """Whether one call gives what the modules would give for this input; see `Chain.takes`."""
        if type(input) is not Tensor or input.is_meta:
            return False
        kind = kind_of(self.layer)
        if has_autocast(input) and not passes_by(_OPERATORS[kind], input.device.type):
            return False
        # Of a linear layer whose gradients are wanted PyTorch keeps no more in two calls.
        if kind is nn.Linear and torch.is_grad_enabled() and _wants_gradient(input, self.layer):
            return False
        dimensions, _ = _LAYERS[kind]
        return dimensions in (None, input.dim())

    def turns(self, input: Tensor) -> bool:
        """Never: the output lies as the input does."""
        return False

    def run(self, input: Tensor, channels_last: bool) -> Tensor:
        """The layer and the activation in one call."""
        _, call = _LAYERS[kind_of(self.layer)]
        return call(self.layer, input, _ENDINGS[type(self.activation)](self.activation))


def _wants_gradient(input: Tensor, layer: nn.Module) -> bool:
    return input.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())


@drop_in
class FusedSequential(nn.Sequential):
    """`torch.nn.Sequential` whose convolutions run with what follows them in one call.

    A Conv1d/2d/3d or ConvTranspose1d/2d/3d, followed by the BatchNorm of its dimension and/or ReLU, LeakyReLU, Tanh or
    Sigmoid, becomes one call: the norm is folded into weight and bias, and the activation is applied as the result is
    written. An Upsample(scale_factor=2) of mode "nearest" before a Conv with kernel 3, stride 1 and padding 1 is folded
    into the weight as well: the call becomes a transposed convolution, with 4 multiplications in place of 9 in two
    dimensions; with float32 weights only, where it is faster. With a norm this happens in eval mode where no gradient
    is needed, without one in training too. With hooks on an inner module, under autocast to dtypes other than bfloat16,
    in exports and under function transforms, the modules run one by one as in torch.nn.Sequential. In a compiled graph
    a chain is one op, forward and backward, except under autocast or with upsampling.

    A GroupNorm, LayerNorm or InstanceNorm1d/2d/3d followed by one of these activations, SiLU, GELU or ELU becomes one
    call likewise, in training too, and so does a Linear where no gradient is needed. So does a float32 convolution with
    a ReflectionPad, an activation other than Sigmoid, or both before it. Between convolutions that end in few channels,
    values are kept in channels_last, which saves rearranging them. The `state_dict` is torch.nn.Sequential's.

    The folded weights are kept until a tensor that they were computed from changes: its version counter, address, dtype
    or, for changes through `.data`, which the counter misses, its elements. Only a sample of the elements is compared
    where comparing all would take as long as the convolution: for a wide layer's weight applied to few pixels, and on
    devices other than the CPU. Where AIGC_FAST_KEPT_BYTES leaves no room for them, the modules run one by one.

    Example:
        >>> model = aigc_fast.nn.FusedSequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
    """

    def forward(self, input: Any) -> Any:
        """Runs the modules in turn; see torch.nn.Sequential."""
        if not plain_eager() or calls_are_observed():
            return super().forward(input) if not is_traced_by_dynamo() or _is_exporting() else self._in_graph(input)
        modules = list(self)
        index, turned = 0, False
        while index < len(modules):
            chain = chain_at(modules, index)
            if chain is not None and chain.takes(input, _is_hidden(modules, index + len(chain))):
                turned = turned or (chain.turns(input) and _ends_narrow(modules, index + len(chain)))
                input = chain.run(input, turned)
                index += len(chain)
            else:
                input = modules[index](input)
                index += 1
            if turned and not _is_run(modules, index):
                input, turned = input.contiguous(), False
        return input

    def _in_graph(self, input: Any) -> Any:
        """The same as Dynamo traces it: a chain is an op of the graph."""
        modules, index = list(self), 0
        for length, kind in self._calls():
            input = _IN_GRAPH[kind](modules[index : index + length], input)
            index += length
        return input

    def _calls(self) -> tuple[tuple[int, str], ...]:
        """How many modules each call in a graph takes, and its kind."""
        modules, index, found = list(self), 0, []
        while index < len(modules):
            chain = None if calls_are_observed() else chain_at(modules, index)
            if isinstance(chain, (Doubled, Entered)):
                chain = None
            length = 1 if chain is None else len(chain)
            found.append((length, _kind_in_graphs(chain, modules[index + length :])))
            index += length
        return tuple(found)


# Dynamo guards what is read of the modules that it traces, and takes hooks and methods for what they were.
after_import("torch._dynamo", lambda dynamo: dynamo.assume_constant_result(FusedSequential._calls))


def _kind_in_graphs(chain: Chain | Ended | None, following: list[nn.Module]) -> str:
    if isinstance(chain, Ended):
        return "ended"
    if chain is None or chain.slope < 0:
        return "apart"
    if chain.norm is not None:
        return "folded"
    return "activated" if not chain.keeps_input or _is_hidden(following, 0) else "apart"


def _apart(modules: list[nn.Module], input: Any) -> Any:
    for module in modules:
        input = module(input)
    return input


def _ended_in_graph(modules: list[nn.Module], input: Any) -> Any:
    layer, activation = modules
    if type(input) is not Tensor or has_autocast(input):
        return _apart(modules, input)
    dimensions, call = _LAYERS[kind_of(layer)]
    if dimensions not in (None, input.dim()):
        return _apart(modules, input)
    return call(layer, input, _ENDINGS[type(activation)](activation))


def _fits_in_graph(conv: nn.Module, input: Any) -> bool:
    return type(input) is Tensor and input.dim() == conv.weight.dim() and not has_autocast(input)


def _activated_in_graph(modules: list[nn.Module], input: Any) -> Any:
    conv, activation = modules
    if not _fits_in_graph(conv, input) or _slope(activation) < 0:
        return _apart(modules, input)
    return _activated(conv, input, conv.weight, conv.bias, activation)


def _folded_in_graph(modules: list[nn.Module], input: Any) -> Any:
    conv, norm, *rest = modules
    if not _fits_in_graph(conv, input) or norm.training or norm.running_mean is None or torch.is_grad_enabled():
        return _apart(modules, input)
    activation = rest[0] if rest else None
    stride, padding, *extra, dilation, groups = _sizes(conv)
    return torch.ops.aigc_fast.conv_batch_norm_activation(
        input,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        stride,
        padding,
        extra[0] if extra else None,
        dilation,
        groups,
        *_written(activation),
        precision=getattr(conv, "float32_precision", None),
    )


_IN_GRAPH: dict[str, Callable[[list[nn.Module], Any], Any]] = {
    "apart": _apart,
    "ended": _ended_in_graph,
    "activated": _activated_in_graph,
    "folded": _folded_in_graph,
}


def _is_hidden(modules: list[nn.Module], index: int) -> bool:
    """Whether the input of `modules[index]` stays inside and as it is, views of it too."""
    for module in modules[index:]:
        if type(module) in _READERS:
            return _KNOWN.run_unseen(module)
        drops = type(module) in _DROPOUTS and not module.inplace
        if not (drops or type(module) in _VIEWS) or not _KNOWN.run_unseen(module):
            return False
        if drops and module.training and module.p > 0:
            return True
    return False


def _is_run(modules: list[nn.Module], index: int) -> bool:
    return index < len(modules) and _foldable_convolution(modules[index])


def _ends_narrow(modules: list[nn.Module], index: int) -> bool:
    """Whether convolutions follow, up to one whose output is cheap to rearrange."""
    channels = _NARROW + 1
    while _is_run(modules, index):
        channels = modules[index].out_channels
        chain = chain_at(modules, index)
        index += 1 if chain is None else len(chain)
    return channels <= _NARROW


def chains(sequential: nn.Sequential) -> list[Chain | Doubled | Ended | Entered]:
    """The chains that `FusedSequential` would run as one call each."""
    modules, index, found = list(sequential), 0, []
    while index < len(modules):
        chain = chain_at(modules, index)
        if chain is not None:
            found.append(chain)
        index += 1 if chain is None else len(chain)
    return found


def chain_at(modules: list[nn.Module], index: int) -> Chain | Doubled | Ended | Entered | None:
    """The chain that begins with `modules[index]`, or None."""
    first, rest = modules[index], modules[index + 1 : index + 4]
    if type(first) in _HEADS:
        ends = bool(rest) and type(rest[0]) in _ENDINGS and all(map(_KNOWN.run_unseen, (first, rest[0])))
        return Ended(first, rest[0]) if ends else None
    if type(first) in _DOUBLINGS:
        meets = bool(rest) and _doubles(first) and _meets_doubled(rest[0])
        return Doubled(first, _chain_of(rest[0], rest[1:])) if meets else None
    if type(first) in _BORDERS or type(first) in _ENDINGS:
        return _entered(modules[index : index + 5])
    if not _foldable_convolution(first):
        return None
    chain = _chain_of(first, rest)
    return chain if len(chain) > 1 else None


def _entered(modules: list[nn.Module]) -> Entered | None:
    """The chain that begins with a border, an activation or both in this order, each of which leaves its input."""
    border = modules[0] if type(modules[0]) in _BORDERS else None
    rest = modules if border is None else modules[1:]
    entry = rest[0] if rest and _enters(rest[0]) else None
    rest = rest if entry is None else rest[1:]
    found = Entered(border, entry, _chain_of(rest[0], rest[1:])) if rest and _foldable_convolution(rest[0]) else None
    if found is None or not found.entries() or not all(map(_KNOWN.run_unseen, found.entries())):
        return None
    mirrors_alone = border is None or not (rest[0].transposed or any(rest[0].padding))
    return found if mirrors_alone and (border is None or _BORDERS[type(border)] == rest[0].weight.dim() - 2) else None


def _enters(module: nn.Module) -> bool:
    return type(module) in _ENDINGS and type(module) is not nn.Sigmoid and not getattr(module, "inplace", False)


def _chain_of(conv: nn.Module, following: list[nn.Module]) -> Chain:
    """A convolution with what of the following modules can be its norm and activation."""
    norm = following[0] if following and _foldable_norm(following[0], conv) else None
    after = following[1:2] if norm is not None else following[:1]
    ends = bool(after) and type(after[0]) in _ACTIVATIONS and _KNOWN.run_unseen(after[0])
    return Chain(conv, norm, after[0] if ends else None)


def _doubles(module: nn.Module) -> bool:
    """Whether the module repeats every element twice along each axis."""
    if module.mode != "nearest" or module.size is not None or not _KNOWN.run_unseen(module):
        return False
    factor = module.scale_factor
    return set(factor if isinstance(factor, tuple) else (factor,)) == {nearest.STRIDE}


def _meets_doubled(module: nn.Module) -> bool:
    """Whether the module is a convolution that `nearest.doubling_weight` knows."""
    if not _foldable_convolution(module) or module.transposed:
        return False
    sizes = ((module.kernel_size, nearest.KERNEL), (module.padding, nearest.PADDING), (module.stride, 1))
    return all(set(given) == {expected} for given, expected in (*sizes, (module.dilation, 1)))


def run_together(modules: list[nn.Module], input: Any, hidden: bool = False) -> Any:
    """What modules make of an input in turn, in one call where that gives the same; see `Chain.takes` for `hidden`."""
    chain = chain_at(modules, 0)
    if chain is not None and len(chain) == len(modules) and chain.takes(input, hidden):
        return chain.run(input, channels_last=False)
    return _apart(modules, input)


def convolve(
    conv: nn.Module,
    input: Tensor,
    before: Before = NOTHING,
    activation: nn.Module | None = None,
    added: Tensor | None = None,
) -> Tensor | None:
    """A convolution with what comes before and after it in one call; see `surrounded`.

    None where that is not to be had, and where somebody watches the convolution or replaced what it does.
    """
    if not writes_anew(conv) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    if any(before.reflected) and any(conv.padding):
        return None
    return run_surrounded(conv, input, folding.weight_of(conv, input), conv.bias, before, _written(activation), added)


def writes_anew(module: nn.Module) -> bool:
    """Whether the module is a convolution, parametrized or not, whose output nobody but its caller sees."""
    cls = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    return cls in _CONVOLUTIONS and is_unwatched(module) and _KNOWN.replaced(module, cls) is None


def _foldable_convolution(module: nn.Module) -> bool:
    if type(module) not in _CONVOLUTIONS or not _KNOWN.run_unseen(module):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _foldable_norm(module: nn.Module, conv: nn.Module) -> bool:
    expected = _NORMS[conv.weight.dim() - 2]
    return type(module) is expected and module.num_features == conv.out_channels and _KNOWN.run_unseen(module)
