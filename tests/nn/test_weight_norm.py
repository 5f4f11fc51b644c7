"""Convolutions whose weight PyTorch's weight norm computes: made once as long as nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from watching import profiled

import aigc_fast


def normed(cls: type[nn.Module] = nn.Conv1d, **options: object) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer after `optimize`, the same before, and an input."""
    stock = weight_norm(cls(24, 40, 7, padding=3, **options))
    return aigc_fast.optimize(copy.deepcopy(stock)), stock, torch.randn(2, 24, 300)


def is_made_anew(layer: nn.Module, input: Tensor) -> bool:
    return any("weight_norm" in name for name in profiled(lambda: layer(input)))


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.ConvTranspose1d])
def test_the_weight_is_made_once(cls: type[nn.Module]) -> None:
    layer, stock, input = normed(cls)
    with torch.no_grad():
        layer(input)
        assert not is_made_anew(layer, input)
        right = copy.deepcopy(stock).double()(input.double())
        for _ in range(3):
            assert relative_error(layer(input), right) <= max(2 * relative_error(stock(input), right), 1e-6)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda norm: norm.original0.mul_(2),
    "through .data": lambda norm: norm.original1.data[3].mul_(-2),
    "another tensor": lambda norm: setattr(norm, "original1", nn.Parameter(norm.original1.flip(0))),
    "a hook": lambda norm: norm[0].register_forward_hook(lambda module, args, output: output * 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    layer, stock, input = normed()
    with torch.no_grad():
        before = [layer(input) for _ in range(3)][-1]
        for module in (layer, stock):
            CHANGES[change](module.parametrizations["weight"])
        right = stock(input)
        assert relative_error(before, right) > 1e-2
        for _ in range(3):
            assert relative_error(layer(input), right) < 2e-6


def test_gradients_are_pytorchs() -> None:
    layer, stock, input = normed()
    with torch.no_grad():
        layer(input)
    found = []
    for module in (layer, stock, copy.deepcopy(stock).double()):
        output = module(input.to(module.bias.dtype))
        found.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    for ours, theirs, right in zip(*found, strict=True):
        assert relative_error(ours, right) <= max(2 * relative_error(theirs, right), 1e-6)


def test_what_was_kept_is_nobodys_else() -> None:
    layer, stock, input = normed()
    with torch.no_grad():
        layer(input)
        layer.weight.zero_()
        assert relative_error(layer(input), stock(input)) < 2e-6
        with parametrize.cached():
            assert relative_error(layer(input), stock(input)) < 2e-6
