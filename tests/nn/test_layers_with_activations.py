"""Norm and linear layers: PyTorch's in all but the kernels, swapped, and in one call with what follows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn
from watching import launches

import aigc_fast
import aigc_fast.nn as fast_nn
from aigc_fast.nn import FusedSequential
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "GroupNorm": (lambda: nn.GroupNorm(4, 32), (2, 32, 9, 11)),
    "GroupNorm, plain": (lambda: nn.GroupNorm(4, 32, affine=False), (2, 32, 300)),
    "LayerNorm": (lambda: nn.LayerNorm(48), (3, 70, 48)),
    "LayerNorm, no bias": (lambda: nn.LayerNorm((7, 48), bias=False), (3, 9, 7, 48)),
    "Linear": (lambda: nn.Linear(48, 70), (3, 70, 48)),
    "Linear, no bias": (lambda: nn.Linear(48, 70, bias=False), (100, 48)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(8, affine=True), (3, 8, 200)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(8), (2, 8, 21, 30)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4), (2, 4, 5, 9, 11)),
}
ENDINGS = {
    "ReLU": lambda: nn.ReLU(inplace=True),
    "LeakyReLU": lambda: nn.LeakyReLU(-0.3),
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "GELU, tanh": lambda: nn.GELU(approximate="tanh"),
    "ELU": lambda: nn.ELU(0.7),
}


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    output = module(x)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output.detach(), *torch.autograd.grad(output, [x, *module.parameters()], gradient)]


def assert_same(found: nn.Module, stock: nn.Module, x: Tensor) -> None:
    for ours, theirs in zip(results(found, x), results(stock, x), strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_a_swapped_layer_is_pytorchs_in_all_but_the_kernels(name: str, backend: str) -> None:
    make, shape = LAYERS[name]
    stock = make()
    layer = aigc_fast.optimize(copy.deepcopy(stock))
    assert type(layer) is getattr(fast_nn, type(stock).__name__)
    assert isinstance(layer, type(stock))
    assert layer.state_dict().keys() == stock.state_dict().keys()
    assert repr(layer) == repr(stock)
    assert_same(layer, stock, torch.randn(shape) + 1)
    assert type(aigc_fast.restore(layer)) is type(stock)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_chain_runs_as_one_call(name: str, ending: str, backend: str) -> None:
    make, shape = LAYERS[name]
    stock = nn.Sequential(make(), ENDINGS[ending]())
    model = aigc_fast.optimize(copy.deepcopy(stock))
    assert type(model) is FusedSequential
    (entry,) = aigc_fast.report(model).fused
    assert entry.layer == f"{type(stock[0]).__name__} + {type(stock[1]).__name__}"
    x = torch.randn(shape) + 1
    assert_same(model, stock, x)
    if backend == "cpu":
        with launches("group_norm", "layer_norm", "linear") as called, torch.no_grad():
            model(x)
        assert len(called) == 1


@needs_native
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", [name for name in LAYERS if "Norm" in name])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_norms_and_activations_as_they_are(name: str, ending: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    stock = nn.Sequential(make(), ENDINGS[ending]())
    model = aigc_fast.optimize(copy.deepcopy(stock))
    x = (torch.randn(40, *shape[1:]) + 1).to(dtype)
    with torch.no_grad():
        right = copy.deepcopy(stock).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            theirs = stock(x)
            with launches("group_norm", "layer_norm") as called:
                ours = model(x)
    assert len(called) == 1 or not name.startswith("GroupNorm")
    assert ours.dtype == theirs.dtype
    assert relative_error(ours, right) <= max(2 * relative_error(theirs, right), 2e-6)


@needs_native
def test_what_is_observed_runs_by_itself() -> None:
    model = aigc_fast.optimize(nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU()))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 8, 70, 70)
    found = model(x)
    assert len(seen) == 1
    assert torch.equal(found, nn.functional.silu(seen[0]))


def test_no_chain_of_other_modules() -> None:
    class Own(nn.GroupNorm):
        pass

    for pair in ((Own(2, 8), nn.SiLU()), (nn.GroupNorm(2, 8), nn.Softplus()), (nn.SiLU(), nn.GroupNorm(2, 8))):
        assert type(aigc_fast.optimize(nn.Sequential(*pair))) is nn.Sequential


def test_an_input_without_a_batch_and_running_statistics() -> None:
    stock = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.ReLU())
    model = aigc_fast.optimize(copy.deepcopy(stock))
    for shape in ((3, 5, 4), (2, 3, 5, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(model(x), stock(x))
    torch.testing.assert_close(model.state_dict(), stock.state_dict())
