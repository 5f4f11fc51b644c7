"""`torch.nn.Sequential` that runs convolutions, and norms, with what follows them as one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast.nn import conv_transpose, linear, norm
from aigc_fast.nn.drop_in import drop_in
from aigc_fast.nn.overrides import Methods, calls_are_observed
from aigc_fast.nn.random import Dropout
from aigc_fast.ops.conv_transpose.operators import conv_activation, conv_transpose_activation
from aigc_fast.ops.conv_transpose.plan import CHANNELS_LAST, is_dense, memory_format
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import Activation
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.kept import fingerprint, store
from aigc_fast.runtime.lowered import keeps_casts, lowered
from aigc_fast.runtime.modules import kind_of, stand_ins
from aigc_fast.runtime.operator import plain_eager

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
_HEADS = _LAYERS.keys() | {ours for ours, theirs in stand_ins.items() if theirs in _LAYERS}
# Modules that read their input only, that return it or a view of it, and that do so where they drop nothing.
_READERS = _CONVOLUTIONS | _HEADS | {*_NORMS.values()}
_VIEWS = {nn.Flatten, nn.Unflatten, nn.Identity}
_DROPOUTS = {nn.Dropout, nn.Dropout2d, nn.Dropout3d, Dropout}
_SAMPLES = 64
_NARROW = 4
_KNOWN = Methods(_READERS | _VIEWS | _DROPOUTS | _ENDINGS.keys())


@dataclass(frozen=True)
class Chain:
    """A convolution with the batch norm and the activation that follow it; at least one of the two."""

    convolution: nn.Module
    norm: nn.Module | None
    activation: nn.Module | None

    def __len__(self) -> int:
        return 1 + (self.norm is not None) + (self.activation is not None)

    def __str__(self) -> str:
        parts = (self.convolution, self.norm, self.activation)
        return " + ".join(type(part).__name__ for part in parts if part is not None)

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
        keeps_input = type(self.activation) is nn.LeakyReLU and not self.activation.inplace
        if self.norm is None and self.slope >= 0 and (hidden or not keeps_input):
            return True
        needs_gradient = input.requires_grad or any(tensor.requires_grad for tensor in self.tensors())
        return not (needs_gradient and torch.is_grad_enabled())

    @property
    def slope(self) -> float:
        """LeakyReLU's slope for negative values; where it is negative, the output does not tell which they were."""
        return getattr(self.activation, "negative_slope", 0.0)

    def turns(self, input: Tensor) -> bool:
        """Whether `run` can write channels_last where the modules would not: the folded weight is its own."""
        weight = self.convolution.weight
        possible = self.norm is not None and weight.dim() in CHANNELS_LAST
        return possible and memory_format(input, weight) == torch.contiguous_format

    def run(self, input: Tensor, channels_last: bool) -> Tensor:
        """Convolution, norm and activation in one call, in channels_last where `turns` allows it.

        One by one where there is no room to keep the folded weight.
        """
        conv = self.convolution
        weight, bias = conv.weight, conv.bias
        if self.norm is not None:
            folded = _folded(self, input.numel() // input.shape[1], channels_last)
            if folded is None:
                return self._one_by_one(input)
            weight, bias = folded
        if has_autocast(input):
            input, weight, bias = lowered(input, weight, bias, input.numel() // input.shape[1])
        activation = _ACTIVATIONS[type(self.activation)] if self.activation is not None else "none"
        geometry = (conv.stride, conv.padding)
        if conv.transposed:
            geometry = (*geometry, conv.output_padding)
            fused = conv_transpose_activation
        else:
            fused = conv_activation
        arguments = input, weight, bias, *geometry, conv.dilation, conv.groups, activation, self.slope
        return fused(*arguments, precision=getattr(conv, "float32_precision", None))

    def _one_by_one(self, input: Tensor) -> Tensor:
        output = self.norm(self.convolution(input))
        return output if self.activation is None else self.activation(output)


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
        if type(input) is not Tensor or input.is_meta or torch.is_autocast_enabled(input.device.type):
            return False
        kind = kind_of(self.layer)
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
    Sigmoid, becomes one call: the norm is folded into weight and bias, the activation is applied as the result is
    written. With a norm this happens in eval mode where no gradient is needed, without one also in training; with
    hooks on an inner module, under autocast to other dtypes than bfloat16, compile, export and function transforms the
    modules run one by one as in torch.nn.Sequential. A GroupNorm, LayerNorm or InstanceNorm1d/2d/3d and one of these,
    SiLU, GELU or ELU become one call likewise, in training too, and so does a Linear where no gradient is needed.
    Between convolutions that end in few channels, values are kept in channels_last, which saves rearranging them. The
    `state_dict` is torch.nn.Sequential's.

    The folded weights are kept until a tensor that they came from changes: its version counter, address, dtype or, for
    changes made through `.data`, which no counter shows, its elements. Of those a sample is looked at where all would
    take as long as the convolution: of a wide layer's weight that meets few pixels, and on other devices than the CPU.
    Where AIGC_FAST_KEPT_BYTES leaves no room for them, the modules run one by one.

    Example:
        >>> model = aigc_fast.nn.FusedSequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
    """

    def forward(self, input: Any) -> Any:
        """Runs the modules in turn; see torch.nn.Sequential."""
        if not plain_eager() or calls_are_observed():
            return super().forward(input)
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


def chains(sequential: nn.Sequential) -> list[Chain | Ended]:
    """The chains that `FusedSequential` would run as one call each."""
    modules = list(sequential)
    found = (chain_at(modules, index) for index in range(len(modules)))
    return [chain for chain in found if chain is not None]


def chain_at(modules: list[nn.Module], index: int) -> Chain | Ended | None:
    """The chain that begins with `modules[index]`, or None."""
    conv = modules[index]
    if type(conv) in _HEADS:
        rest = modules[index : index + 2]
        ends = len(rest) == 2 and type(rest[1]) in _ENDINGS and all(map(_KNOWN.run_unseen, rest))
        return Ended(*rest) if ends else None
    if not _foldable_convolution(conv):
        return None
    rest = modules[index + 1 : index + 3]
    norm = rest.pop(0) if rest and _foldable_norm(rest[0], conv) else None
    activation = rest[0] if rest and type(rest[0]) in _ACTIVATIONS and _KNOWN.run_unseen(rest[0]) else None
    return Chain(conv, norm, activation) if norm is not None or activation is not None else None


def _foldable_convolution(module: nn.Module) -> bool:
    if type(module) not in _CONVOLUTIONS or not _KNOWN.run_unseen(module):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _foldable_norm(module: nn.Module, conv: nn.Module) -> bool:
    expected = _NORMS[conv.weight.dim() - 2]
    return type(module) is expected and module.num_features == conv.out_channels and _KNOWN.run_unseen(module)


class _Fold(NamedTuple):
    stamp: tuple[Any, ...]
    weight: Tensor
    bias: Tensor


def _folded(chain: Chain, pixels: int, channels_last: bool) -> tuple[Tensor, Tensor] | None:
    """The folded weight and bias; None where there is no room to keep them."""
    tensors = chain.tensors()
    if not all(_trackable(tensor) for tensor in tensors):
        return _fold(chain, channels_last)
    weight, norm = chain.convolution.weight, chain.norm
    slot = store.slot_of(weight, ("fold", id(norm), channels_last))
    # The cap is of the machine's memory alone.
    if weight.is_cpu and not store.hold(slot, weight.nbytes + norm.num_features * weight.itemsize):
        return None
    versions = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors]
    stamp = (norm.eps, *versions, *_contents(tensors, pixels))
    known = slot.value
    if known is None or known.stamp != stamp:
        known = slot.value = _Fold(stamp, *_fold(chain, channels_last))
    return known.weight, known.bias


def _trackable(tensor: Tensor) -> bool:
    return is_dense(tensor) and not tensor.is_inference() and tensor.numel() > 0


def _contents(tensors: list[Tensor], pixels: int) -> list[Hashable]:
    """Numbers that change with the elements of tensors that meet so many pixels."""
    if tensors[0].is_cpu and native.cpu_reason() is None:
        return [fingerprint(tensor, pixels) for tensor in tensors]
    picked = []
    for tensor in tensors:
        step = -(-tensor.numel() // _SAMPLES)
        picked.append(tensor.detach().as_strided((-(-tensor.numel() // step),), (step,)))
    return torch.cat(picked).tolist()


def _fold(chain: Chain, channels_last: bool) -> tuple[Tensor, Tensor]:
    conv, norm = chain.convolution, chain.norm
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean.double() * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        weight = conv.weight
        if conv.transposed:
            grouped = weight.unflatten(0, (conv.groups, -1))
            per_channel = scale.to(weight.dtype).view(conv.groups, 1, -1, *[1] * (weight.dim() - 2))
            folded = (grouped * per_channel).flatten(0, 1)
        else:
            folded = weight * scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))
        if channels_last:
            folded = folded.contiguous(memory_format=CHANNELS_LAST[folded.dim()])
        return folded, shift.to(weight.dtype)
