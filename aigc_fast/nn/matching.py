"""Finds what runs as one call among modules that follow each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from aigc_fast.nn import conv_transpose, folding
from aigc_fast.nn.chains import (
    ACTIVATIONS,
    ENDINGS,
    LAYERS,
    Chain,
    Doubled,
    Ended,
    Entered,
    apart,
    run_surrounded,
    written,
)
from aigc_fast.nn.overrides import Methods, is_unwatched
from aigc_fast.nn.random import Dropout
from aigc_fast.ops.conv_transpose import nearest
from aigc_fast.ops.conv_transpose.surrounded import NOTHING, Before
from aigc_fast.runtime.modules import stand_ins

_NAMES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_CONVOLUTIONS = {getattr(home, name) for home in (nn, conv_transpose) for name in _NAMES}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_HEADS = LAYERS.keys() | {ours for ours, theirs in stand_ins.items() if theirs in LAYERS}
# By the dimensions that their padding is told of.
_BORDERS = {nn.ReflectionPad1d: 1, nn.ReflectionPad2d: 2, nn.ReflectionPad3d: 3}
_DOUBLINGS = {nn.Upsample, nn.UpsamplingNearest2d}
# Modules that read their input only, that return it or a view of it, and that do so where they drop nothing.
_READERS = _CONVOLUTIONS | _HEADS | {*_NORMS.values()} | _DOUBLINGS | _BORDERS.keys()
_VIEWS = {nn.Flatten, nn.Unflatten, nn.Identity}
_DROPOUTS = {nn.Dropout, nn.Dropout2d, nn.Dropout3d, Dropout}
_KNOWN = Methods(_READERS | _VIEWS | _DROPOUTS | ENDINGS.keys())


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
        ends = bool(rest) and type(rest[0]) in ENDINGS and all(map(_KNOWN.run_unseen, (first, rest[0])))
        return Ended(first, rest[0]) if ends else None
    if type(first) in _DOUBLINGS:
        meets = bool(rest) and _doubles(first) and _meets_doubled(rest[0])
        return Doubled(first, _chain_of(rest[0], rest[1:])) if meets else None
    if type(first) in _BORDERS or type(first) in ENDINGS:
        return _entered(modules[index : index + 5])
    if not is_foldable(first):
        return None
    chain = _chain_of(first, rest)
    return chain if len(chain) > 1 else None


def _entered(modules: list[nn.Module]) -> Entered | None:
    """The chain that begins with a border, an activation or both in this order, each of which leaves its input."""
    border = modules[0] if type(modules[0]) in _BORDERS else None
    rest = modules if border is None else modules[1:]
    entry = rest[0] if rest and _enters(rest[0]) else None
    rest = rest if entry is None else rest[1:]
    found = Entered(border, entry, _chain_of(rest[0], rest[1:])) if rest and is_foldable(rest[0]) else None
    if found is None or not found.entries() or not all(map(_KNOWN.run_unseen, found.entries())):
        return None
    mirrors_alone = border is None or not (rest[0].transposed or any(rest[0].padding))
    return found if mirrors_alone and (border is None or _BORDERS[type(border)] == rest[0].weight.dim() - 2) else None


def _enters(module: nn.Module) -> bool:
    return type(module) in ENDINGS and type(module) is not nn.Sigmoid and not getattr(module, "inplace", False)


def _chain_of(conv: nn.Module, following: list[nn.Module]) -> Chain:
    """A convolution with what of the following modules can be its norm and activation."""
    norm = following[0] if following and _foldable_norm(following[0], conv) else None
    after = following[1:2] if norm is not None else following[:1]
    ends = bool(after) and type(after[0]) in ACTIVATIONS and _KNOWN.run_unseen(after[0])
    return Chain(conv, norm, after[0] if ends else None)


def _doubles(module: nn.Module) -> bool:
    """Whether the module repeats every element twice along each axis."""
    if module.mode != "nearest" or module.size is not None or not _KNOWN.run_unseen(module):
        return False
    factor = module.scale_factor
    return set(factor if isinstance(factor, tuple) else (factor,)) == {nearest.STRIDE}


def _meets_doubled(module: nn.Module) -> bool:
    """Whether the module is a convolution that `nearest.doubling_weight` knows."""
    if not is_foldable(module) or module.transposed:
        return False
    sizes = ((module.kernel_size, nearest.KERNEL), (module.padding, nearest.PADDING), (module.stride, 1))
    return all(set(given) == {expected} for given, expected in (*sizes, (module.dilation, 1)))


def is_hidden(modules: list[nn.Module], index: int) -> bool:
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


def run_together(modules: list[nn.Module], input: Any, hidden: bool = False) -> Any:
    """What modules make of an input in turn, in one call where that gives the same; see `Chain.takes` for `hidden`."""
    chain = chain_at(modules, 0)
    if chain is not None and len(chain) == len(modules) and chain.takes(input, hidden):
        return chain.run(input, channels_last=False)
    return apart(modules, input)


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
    return run_surrounded(conv, input, folding.weight_of(conv, input), conv.bias, before, written(activation), added)


def writes_anew(module: nn.Module) -> bool:
    """Whether the module is a convolution, parametrized or not, whose output nobody but its caller sees."""
    cls = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    return cls in _CONVOLUTIONS and is_unwatched(module) and _KNOWN.replaced(module, cls) is None


def is_foldable(module: nn.Module) -> bool:
    """Whether a batch norm that follows the module can become a part of its weights."""
    if type(module) not in _CONVOLUTIONS or not _KNOWN.run_unseen(module):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _foldable_norm(module: nn.Module, conv: nn.Module) -> bool:
    expected = _NORMS[conv.weight.dim() - 2]
    return type(module) is expected and module.num_features == conv.out_channels and _KNOWN.run_unseen(module)
