"""nn.FusedSequential: nearest-neighbour upsampling that is folded into the convolution after it, and when it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import with_statistics
from parity import assert_parity, relative_error
from torch import Tensor, nn
from watching import profiled

import aigc_fast
from aigc_fast.nn import FusedSequential
from aigc_fast.ops.conv_transpose import nearest

SIZES = {1: (7,), 2: (5, 6), 3: (2, 3, 5)}


def upsampled(dims: int, *after: nn.Module, groups: int = 1, bias: bool = True, **kwargs: Any) -> nn.Sequential:
    conv = getattr(nn, f"Conv{dims}d")(4, 6, **{"kernel_size": 3, "padding": 1, **kwargs}, groups=groups, bias=bias)
    return with_statistics(nn.Sequential(nn.Upsample(scale_factor=2), conv, *after)).eval()


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("DOUBLED_WORK", "DOUBLED_WORK_OF_GRADIENTS", "DOUBLED_POSITIONS_OF_GRADIENTS"):
        monkeypatch.setattr(nearest, limit, 0)
    monkeypatch.setattr(nearest, "MOST_DOUBLED_GROUPS", 2)


def is_folded(model: nn.Module, input: Tensor) -> bool:
    return not any("upsample_" in name for name in profiled(lambda: model(input)))


def penalised(model: nn.Module, input: Tensor) -> list[Tensor]:
    """The loss of a model with a penalty on the gradient to its input, and its gradients."""
    input = input.clone().requires_grad_()
    output = model(input)
    (gradient,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    loss = output.sum() + gradient.square().mean()
    return [loss, *torch.autograd.grad(loss, [input, *model.parameters()])]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
class TestNumbers:
    def test_inference(self, dims: int, groups: int, bias: bool) -> None:
        norm = getattr(nn, f"BatchNorm{dims}d")
        for after in ([], [norm(6)], [nn.LeakyReLU(0.3)], [norm(6), nn.Tanh()], [nn.SiLU()]):
            model = upsampled(dims, *after, groups=groups, bias=bias)
            stock, input = copy.deepcopy(model), torch.randn(2, 4, *SIZES[dims])
            assert type(aigc_fast.optimize(model)) is FusedSequential
            with torch.no_grad():
                assert is_folded(model, input)
                assert_parity(model(input), stock(input), copy.deepcopy(stock).double()(input.double()))

    def test_training_and_second_derivatives(self, dims: int, groups: int, bias: bool) -> None:
        model = upsampled(dims, nn.Sigmoid(), groups=groups, bias=bias).train()
        stock, input = copy.deepcopy(model), torch.randn(2, 4, *SIZES[dims])
        assert is_folded(aigc_fast.optimize(model), input)
        found, theirs = penalised(model, input), penalised(stock, input)
        expected = penalised(copy.deepcopy(stock).double(), input.double())
        for index, results in enumerate(zip(found, theirs, expected, strict=True)):
            assert_parity(*results, name=f"result {index}", floor=5e-6)


CHANGES = {
    "weight through .data": lambda m: m[1].weight.data.mul_(2),
    "a new weight": lambda m: setattr(m[1], "weight", nn.Parameter(torch.randn_like(m[1].weight))),
    "bias": lambda m: m[1].bias.data.add_(1),
    "factor": lambda m: setattr(m[0], "scale_factor", 3.0),
    "stride": lambda m: setattr(m[1], "stride", (2, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_followed(change: str) -> None:
    model, input = aigc_fast.optimize(upsampled(2)), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        before = model(input)
        CHANGES[change](model)
        found, expected = model(input), nn.Sequential.forward(model, input)
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 2e-6
        assert found.shape != before.shape or relative_error(found, before) > 1e-3


UNFOLDED = {
    "three times": lambda: nn.Sequential(nn.Upsample(scale_factor=3), nn.Conv2d(4, 6, 3, padding=1)),
    "one axis": lambda: nn.Sequential(nn.Upsample(scale_factor=(2, 1)), nn.Conv2d(4, 6, 3, padding=1)),
    "to a size": lambda: nn.Sequential(nn.Upsample(size=(10, 12)), nn.Conv2d(4, 6, 3, padding=1)),
    "bilinear": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 6, 3, padding=1)),
    "kernel of 5": lambda: upsampled(2, kernel_size=5),
    "no padding": lambda: upsampled(2, padding=0),
    "stride": lambda: upsampled(2, stride=2),
    "dilation": lambda: upsampled(2, dilation=2, padding=1),
    "reflection": lambda: upsampled(2, padding_mode="reflect"),
    "nothing after": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
    "transposed": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 6, 3, padding=1)),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_others_run_module_by_module(name: str) -> None:
    model = UNFOLDED[name]()
    stock, input = copy.deepcopy(model), torch.randn(2, 4, 5, 6)
    aigc_fast.optimize(model)
    with torch.no_grad():
        assert not is_folded(model, input)
        assert relative_error(model(input), stock(input)) < 2e-6


def test_dtypes_hooks_and_unbatched_inputs() -> None:
    model, input, seen = aigc_fast.optimize(upsampled(2)), torch.randn(2, 4, 5, 6), []
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert model(input).dtype == torch.bfloat16
        handle = model[0].register_forward_hook(lambda *_: seen.append(1))
        assert not is_folded(model, input)
        assert seen
        handle.remove()
        assert is_folded(model, input)
        for dtype in (torch.float64, torch.bfloat16):
            assert not is_folded(model.to(dtype), input.to(dtype))
        with pytest.raises(RuntimeError):
            model.float()(input[:, :3])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast_rounds_the_sums_of_floats(
    groups: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_is_measured_in_bfloat16", lambda: True)
    stock = upsampled(2, nn.BatchNorm2d(6), nn.ReLU(), groups=groups).to(memory_format=layout)
    model, input = aigc_fast.optimize(copy.deepcopy(stock)), torch.randn(2, 4, 25, 26)
    with torch.no_grad():
        right = copy.deepcopy(stock).double()(input.double())
        for given in (input, input.bfloat16()):
            with torch.autocast("cpu", torch.bfloat16):
                assert is_folded(model, given)
                ours, theirs = model(given), stock(given)
            assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
            assert relative_error(ours, right) <= 2 * relative_error(theirs, right)
            with torch.autocast("cpu", torch.float16):
                assert not is_folded(model, given)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_folded(model, input)
        assert not is_folded(copy.deepcopy(model).bfloat16(), input.bfloat16())


@pytest.mark.parametrize("where", ["weight", "input"])
def test_the_output_lies_as_pytorchs(where: str) -> None:
    model, input = upsampled(2), torch.randn(2, 4, 5, 6)
    if where == "weight":
        model.to(memory_format=torch.channels_last)
    else:
        input = input.contiguous(memory_format=torch.channels_last)
    stock = copy.deepcopy(model)
    for graded in (False, True):
        with torch.set_grad_enabled(graded):
            assert aigc_fast.optimize(model)(input).stride() == stock(input).stride()


def test_small_ones_run_module_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = aigc_fast.optimize(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3, padding=1)))
    with torch.no_grad():
        assert not is_folded(model, torch.randn(1, 16, 8, 8))
        assert is_folded(model, torch.randn(1, 16, 64, 64))
    assert not is_folded(model, torch.randn(1, 16, 8, 8))
    assert is_folded(model, torch.randn(1, 16, 64, 64))
    grouped = aigc_fast.optimize(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3, padding=1, groups=16)))
    assert not is_folded(grouped, torch.randn(1, 16, 256, 256))


def test_the_report_names_the_chain() -> None:
    model = aigc_fast.optimize(upsampled(2, nn.BatchNorm2d(6), nn.ReLU()))
    assert "Upsample + Conv2d + BatchNorm2d + ReLU" in str(aigc_fast.report(model))
