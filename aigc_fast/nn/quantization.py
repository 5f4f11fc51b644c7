"""Fusing for PyTorch's eager-mode quantization, which looks layers up by their exact type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.ao.quantization import fuser_method_mappings

from aigc_fast.nn.drop_in import become


def register_fusers(originals: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Lets `torch.ao.quantization.fuse_modules` take our convolutions, which it makes PyTorch's.

    Args:
        originals: the torch.nn class of each of ours.
    """
    known = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})
    for ours, torchs in originals.items():
        for types, fuse in list(known.items()):
            if types[0] is torchs:
                known[(ours, *types[1:])] = _of_torchs(torchs, fuse)


def _of_torchs(torchs: type[nn.Module], fuse: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def fuse_ours(is_qat: bool, convolution: nn.Module, *rest: Any) -> nn.Module:
        become(convolution, torchs)
        return fuse(is_qat, convolution, *rest)

    return fuse_ours
