"""`torch.nn.Sequential` that runs convolutions, and norms, with what follows them as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.nn.chains import (
    ENDINGS,
    LAYERS,
    Chain,
    Doubled,
    Ended,
    Entered,
    activated,
    apart,
    sizes_of,
    slope_of,
    written,
)
from aigc_fast.nn.drop_in import drop_in
from aigc_fast.nn.matching import chain_at, is_foldable, is_hidden
from aigc_fast.nn.overrides import calls_are_observed
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.imports import after_import
from aigc_fast.runtime.modules import kind_of
from aigc_fast.runtime.operator import is_traced_by_dynamo, plain_eager

# Channels of an output that is cheap to rearrange, at most.
_NARROW = 4
# A torch that does not tell exports from compilation runs the modules one by one in both.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: True)


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
            if chain is not None and chain.takes(input, is_hidden(modules, index + len(chain))):
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
    return "activated" if not chain.keeps_input or is_hidden(following, 0) else "apart"


def _ended_in_graph(modules: list[nn.Module], input: Any) -> Any:
    layer, activation = modules
    if type(input) is not Tensor or has_autocast(input):
        return apart(modules, input)
    dimensions, _, call = LAYERS[kind_of(layer)]
    if dimensions not in (None, input.dim()):
        return apart(modules, input)
    return call(layer, input, ENDINGS[type(activation)](activation))


def _fits_in_graph(conv: nn.Module, input: Any) -> bool:
    return type(input) is Tensor and input.dim() == conv.weight.dim() and not has_autocast(input)


def _activated_in_graph(modules: list[nn.Module], input: Any) -> Any:
    conv, activation = modules
    if not _fits_in_graph(conv, input) or slope_of(activation) < 0:
        return apart(modules, input)
    return activated(conv, input, conv.weight, conv.bias, activation)


def _folded_in_graph(modules: list[nn.Module], input: Any) -> Any:
    conv, norm, *rest = modules
    if not _fits_in_graph(conv, input) or norm.training or norm.running_mean is None or torch.is_grad_enabled():
        return apart(modules, input)
    activation = rest[0] if rest else None
    stride, padding, *extra, dilation, groups = sizes_of(conv)
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
        *written(activation),
        precision=getattr(conv, "float32_precision", None),
    )


_IN_GRAPH: dict[str, Callable[[list[nn.Module], Any], Any]] = {
    "apart": apart,
    "ended": _ended_in_graph,
    "activated": _activated_in_graph,
    "folded": _folded_in_graph,
}


def _is_run(modules: list[nn.Module], index: int) -> bool:
    return index < len(modules) and is_foldable(modules[index])


def _ends_narrow(modules: list[nn.Module], index: int) -> bool:
    """Whether convolutions follow, up to one whose output is cheap to rearrange."""
    channels = _NARROW + 1
    while _is_run(modules, index):
        channels = modules[index].out_channels
        chain = chain_at(modules, index)
        index += 1 if chain is None else len(chain)
    return channels <= _NARROW
