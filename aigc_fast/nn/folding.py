"""Weights of convolutions into which norms, of maps or of the weight, and upsampling are folded, kept as long as
nothing changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from aigc_fast.nn.overrides import calls_are_observed, is_unwatched
from aigc_fast.ops.conv_transpose import nearest
from aigc_fast.ops.conv_transpose.operators import conv_activation, conv_transpose_activation
from aigc_fast.ops.conv_transpose.plan import CHANNELS_LAST, is_dense
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import FUNCTIONS
from aigc_fast.runtime.kept import fingerprint, store
from aigc_fast.runtime.operator import LIBRARY, hashable, in_force, plain_eager

_SAMPLES = 64


class Statistics(NamedTuple):
    """What a batch norm at inference computes with."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float


class _Fold(NamedTuple):
    stamp: tuple[Any, ...]
    weight: Tensor
    bias: Tensor | None


def folded(
    weight: Tensor,
    bias: Tensor | None,
    norm: Statistics,
    transposed: bool,
    groups: int,
    pixels: int,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """The weight and bias of a convolution and the norm that follows, as one; None where there is no room to keep them.

    Args:
        weight, bias: of the convolution.
        norm: of its output.
        transposed, groups: of the convolution.
        pixels: of its input.
        channels_last: how the weight is to lie; False leaves it as it lies.
    """
    tensors = [tensor for tensor in (weight, bias, *norm[:-1]) if tensor is not None]
    if not all(_trackable(tensor) for tensor in tensors):
        return _fold(weight, bias, norm, transposed, groups, channels_last)
    slot = store.slot_of(weight, ("fold", norm.mean.data_ptr(), channels_last))
    # The limit only concerns the machine's memory.
    if weight.is_cpu and not store.hold(slot, weight.nbytes + norm.mean.numel() * weight.itemsize):
        return None
    stamp = (norm.eps, *_state(tensors, pixels))
    known = slot.value
    if known is None or known.stamp != stamp:
        known = slot.value = _sealed(stamp, *_fold(weight, bias, norm, transposed, groups, channels_last))
    return known.weight, known.bias


def doubled(weight: Tensor, groups: int, pixels: int) -> Tensor | None:
    """`nearest.doubling_weight`, kept as long as the weight is what it was; None where there is no room to keep it.

    Args:
        weight: of a convolution.
        groups: of it.
        pixels: of its input, before that is doubled.
    """
    if not _trackable(weight):
        return nearest.doubling_weight(weight.detach(), groups)
    slot = store.slot_of(weight, ("doubled", groups))
    axes = weight.dim() - 2
    if not store.hold(slot, weight.nbytes // nearest.KERNEL**axes * nearest.DOUBLING_KERNEL**axes):
        return None
    stamp = tuple(_state([weight], pixels))
    known = slot.value
    if known is None or known.stamp != stamp:
        known = slot.value = _sealed(stamp, nearest.doubling_weight(weight.detach(), groups), None)
    return known.weight


def weight_of(module: nn.Module, input: Tensor) -> Tensor:
    """A convolution's weight; one that `torch.nn.utils.parametrizations.weight_norm` computes is kept where it can be.

    Args:
        module: the convolution.
        input: of it.
    """
    norm = _weight_norm_of(module) if "parametrizations" in module._modules else None
    if norm is None:
        return module.weight
    length, direction = parameters = norm.original0, norm.original1
    if not (direction.is_cpu and all(_trackable(tensor) for tensor in parameters)) or _wants_gradient(parameters):
        return module.weight
    slot = store.slot_of(direction, ("weight_norm", length.data_ptr(), norm[0].dim))
    if not store.hold(slot, direction.nbytes):
        return module.weight
    stamp = tuple(_state([length, direction], input.numel() // module.in_channels))
    known = slot.value
    if known is None or known.stamp != stamp:
        with torch.inference_mode(False), torch.no_grad():
            known = slot.value = _sealed(stamp, norm[0](length.detach(), direction.detach()), None)
    return known.weight


def _wants_gradient(tensors: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _weight_norm_of(module: nn.Module) -> nn.Module | None:
    """The parametrization of a module that has no other than the weight's norm, which runs as it is written."""
    norms = module.parametrizations
    if list(norms) != ["weight"] or parametrize._cache_enabled or not plain_eager() or calls_are_observed():
        return None
    norm = norms["weight"]
    if type(norm) is not parametrize.ParametrizationList or len(norm) != 1 or type(norm[0]) is not _WeightNorm:
        return None
    return norm if is_unwatched(norm) and is_unwatched(norm[0]) else None


def _sealed(stamp: tuple[Any, ...], weight: Tensor, bias: Tensor | None) -> _Fold:
    store.seal(weight)
    return _Fold(stamp, weight, bias)


def _state(tensors: list[Tensor], pixels: int) -> list[Hashable]:
    versions = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors]
    return [*versions, *_contents(tensors, pixels)]


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


def _fold(
    weight: Tensor, bias: Tensor | None, norm: Statistics, transposed: bool, groups: int, channels_last: bool
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scale = (norm.variance.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.mean.double() * scale
        if bias is not None:
            shift = shift + bias * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        if transposed:
            grouped = weight.unflatten(0, (groups, -1))
            per_channel = scale.to(weight.dtype).view(groups, 1, -1, *[1] * (weight.dim() - 2))
            made = (grouped * per_channel).flatten(0, 1)
        else:
            made = weight * scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))
        if channels_last:
            made = made.contiguous(memory_format=CHANNELS_LAST[made.dim()])
        return made, shift.to(weight.dtype)


def _run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int] | None,
    dilation: Sequence[int],
    groups: int,
    activation: str,
    slope: float,
    *,
    precision: str | None = None,
) -> Tensor:
    transposed = output_padding is not None
    fused = conv_transpose_activation if transposed else conv_activation
    sizes = (stride, padding, output_padding, dilation) if transposed else (stride, padding, dilation)
    sizes = (*hashable(sizes), groups)
    norm = Statistics(scale, shift, mean, variance, eps)
    found = folded(weight, bias, norm, transposed, groups, input.numel() // input.shape[1])
    if found is not None:
        return in_force(precision).run(fused.run, input, *found, *sizes, activation, slope)
    output = in_force(precision).run(fused.run, input, weight, bias, *sizes, "none", 0.0)
    output = torch.nn.functional.batch_norm(output, mean, variance, scale, shift, False, 0.0, eps)
    return FUNCTIONS[activation](output, slope)


def _allocate(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, precision: str | None = None) -> Tensor:
    *_, stride, padding, output_padding, dilation, groups, activation, slope = rest
    if output_padding is None:
        return conv_activation.allocate(input, weight, bias, stride, padding, dilation, groups, activation, slope)
    sizes = stride, padding, output_padding, dilation, groups
    return conv_transpose_activation.allocate(input, weight, bias, *sizes, activation, slope)


# Opaque to torch.compile, which would fold again in every call.
LIBRARY.define(
    "conv_batch_norm_activation(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor mean, "
    "Tensor variance, float eps, SymInt[] stride, SymInt[] padding, SymInt[]? output_padding, SymInt[] dilation, "
    "SymInt groups, str activation, float slope, *, str? precision=None) -> Tensor"
)
LIBRARY.impl("conv_batch_norm_activation", _run, "CompositeExplicitAutograd")
torch.library.register_fake("aigc_fast::conv_batch_norm_activation", _allocate, lib=LIBRARY)
