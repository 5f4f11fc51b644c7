"""nn.FusedSequential: convolutions that run with what follows them in one call, and when they do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import assert_same, generator, with_statistics
from parity import assert_parity, relative_error
from torch import Tensor, nn
from watching import profiled

import aigc_fast
from aigc_fast.nn import FusedSequential


def chain(dims: int, transposed: bool, norm: bool, activation: nn.Module | None, **kwargs: Any) -> nn.Sequential:
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    layers: list[nn.Module] = [getattr(nn, name)(4, 6, 3, stride=2, padding=1, **kwargs)]
    if norm:
        layers.append(getattr(nn, f"BatchNorm{dims}d")(6))
    if activation is not None:
        layers.append(activation)
    return with_statistics(nn.Sequential(*layers)).eval()


def is_one_call(model: nn.Module, input: Tensor) -> bool:
    """Whether a chain with a norm runs as one call, which leaves no norm for PyTorch to compute."""
    return "aten::batch_norm" not in profiled(lambda: model(input))


CHANGES = {
    "in place": lambda m: m[0].weight.mul_(2),
    "through .data": lambda m: m[0].weight.data.mul_(2),
    "a new tensor": lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn_like(m[0].weight))),
    "bias": lambda m: m[0].bias.add_(1),
    "statistics": lambda m: m[1].running_var.data.fill_(3),
    "scale": lambda m: nn.init.normal_(m[1].weight.data),
    "load_state_dict": lambda m: m.load_state_dict(chain(2, True, True, nn.ReLU()).state_dict()),
    "eps": lambda m: setattr(m[1], "eps", 0.5),
    "dtype": lambda m: m.double(),
    "slope": lambda m: setattr(m[2], "negative_slope", 0.7),
    "another module": lambda m: m.__setitem__(1, with_statistics(nn.BatchNorm2d(6)).eval()),
    "a module less": lambda m: m.__delitem__(1),
}


def penalised(model: nn.Module, input: Tensor) -> Tensor:
    """The loss, after its backward pass, of a model with a penalty on the gradient to its input."""
    input = input.clone().requires_grad_()
    output = model(input)
    (gradient,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    loss = output.sum() + gradient.square().sum()
    loss.backward()
    return loss.detach()


class TestFusion:
    @pytest.mark.parametrize("dims", [1, 2, 3])
    @pytest.mark.parametrize("transposed", [True, False])
    @pytest.mark.parametrize(
        ("norm", "activation"),
        [(True, None), (True, nn.ReLU()), (False, nn.LeakyReLU(0.3)), (True, nn.Tanh()), (False, nn.Sigmoid())],
        ids=str,
    )
    def test_same_numbers(self, dims: int, transposed: bool, norm: bool, activation: nn.Module | None) -> None:
        for kwargs in ({}, {"bias": False}, {"groups": 2}):
            model = chain(dims, transposed, norm, activation, **kwargs)
            stock = copy.deepcopy(model)
            assert type(aigc_fast.optimize(model)) is FusedSequential
            assert_same(model, stock, torch.randn(2, 4, *[5] * dims))

    def test_one_call_at_inference_and_module_by_module_otherwise(self) -> None:
        model, input = aigc_fast.optimize(chain(2, True, True, nn.ReLU())), torch.randn(2, 4, 5, 5)
        with torch.no_grad():
            assert is_one_call(model, input)
        assert not is_one_call(model, input), "a gradient is needed"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert is_one_call(model, input)
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            assert not is_one_call(model, input), "autocast to another dtype"
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_one_call(model, input), "a gradient is needed"
        assert is_one_call(model.requires_grad_(False), input), "no gradient is needed"
        with torch.no_grad():
            assert not is_one_call(model.train(), input), "training"
            model.eval()[1].train()
            assert not is_one_call(model, input), "the norm alone is training"

    @pytest.mark.parametrize("transposed", [True, False])
    def test_bfloat16_autocast_has_pytorchs_dtype_and_error(self, transposed: bool) -> None:
        model = chain(2, transposed, True, nn.LeakyReLU(0.2))
        stock, input = copy.deepcopy(model), torch.randn(2, 4, 5, 5)
        aigc_fast.optimize(model)
        with torch.no_grad():
            exact = copy.deepcopy(stock).double()(input.double())
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(3):
                    assert_parity(model(input), stock(input), exact)
                for parameter in (*model.parameters(), *stock.parameters()):
                    parameter.data.mul_(-2)
                exact = copy.deepcopy(stock).double()(input.double())
                assert_parity(model(input), stock(input), exact, "other weights")

    @pytest.mark.parametrize(
        ("activation", "fused"),
        [
            (nn.ReLU(), True),
            (nn.LeakyReLU(0.2, inplace=True), True),
            (nn.LeakyReLU(-0.2), False),
            (nn.Tanh(), True),
            (nn.Sigmoid(), True),
        ],
        ids=str,
    )
    def test_a_chain_without_a_norm_trains_in_one_call(self, activation: nn.Module, fused: bool) -> None:
        model = chain(2, True, False, activation).train()
        stock = copy.deepcopy(model)
        aigc_fast.optimize(model)
        input = torch.randn(2, 4, 5, 5)
        assert ("conv_transpose_activation" in profiled(lambda: model(input))) == fused
        losses = [penalised(model, input) for model in (model, stock)]
        assert relative_error(losses[0], losses[1]) < 2e-6
        for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
            assert relative_error(ours.grad, theirs.grad) < 5e-6

    @pytest.mark.parametrize(
        "tail", [[], [nn.Dropout(0.0)], [nn.Flatten(2)], [nn.Dropout2d(0.3, inplace=True)]], ids=str
    )
    def test_the_output_of_leaky_relu_may_be_written_to(self, tail: list[nn.Module]) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.LeakyReLU(0.2), *tail)
        stock, input = copy.deepcopy(model), torch.randn(2, 4, 5, 5)
        for module in (stock, aigc_fast.optimize(model)):
            torch.manual_seed(0)
            output = module(input)
            output += 1
            output.square().sum().backward()
        if not any(isinstance(module, nn.Dropout2d) for module in tail):
            for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
                assert relative_error(ours.grad, theirs.grad) < 5e-6

    @pytest.mark.parametrize(
        ("following", "fused"),
        [
            ([nn.Dropout(0.3), nn.ReLU(inplace=True)], True),
            ([nn.Dropout(0.0), nn.Flatten(), nn.Linear(100, 3)], True),
            ([nn.Conv2d(4, 3, 3)], True),
            ([nn.Dropout(0.0), nn.ReLU(inplace=True)], False),
            ([nn.Softplus()], False),
            ([], False),
        ],
        ids=str,
    )
    def test_leaky_relu_trains_in_one_call_where_no_one_writes_to_its_output(
        self, following: list[nn.Module], fused: bool
    ) -> None:
        model = aigc_fast.optimize(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.LeakyReLU(0.2), *following))
        seen = profiled(lambda: model(torch.randn(2, 4, 5, 5)).sum().backward())
        assert ("conv_activation" in seen) == fused

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("channels", [1, 3, 24])
    def test_values_between_convolutions_are_in_channels_last_where_few_channels_leave(
        self, channels: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = [nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*first, nn.Conv2d(16, 16, 3, 1, 1), nn.ConvTranspose2d(16, channels, 4, 2, 1), nn.Tanh())
        stock, strides = copy.deepcopy(model.eval()), []
        aigc_fast.optimize(model)
        plain = aigc_fast.functional.conv2d

        def observed(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            strides.append(input.stride(1))
            return plain(input, *args, **kwargs)

        monkeypatch.setattr(aigc_fast.functional, "conv2d", observed)
        input = torch.randn(2, 8, 8, 8).contiguous(memory_format=layout)
        with torch.no_grad():
            found, expected = model(input), stock(input)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for order in (torch.contiguous_format, torch.channels_last):
            assert found.is_contiguous(memory_format=order) == expected.is_contiguous(memory_format=order)
        assert strides == [1 if layout == torch.channels_last or channels < 24 else 16 * 16]

    def test_hooks_on_inner_modules_are_called(self) -> None:
        model, seen, input = aigc_fast.optimize(chain(2, True, True, nn.ReLU())), [], torch.randn(1, 4, 5, 5)
        handle = model[1].register_forward_hook(lambda *_: seen.append(1))
        with torch.no_grad():
            assert not is_one_call(model, input)
            assert seen == [1]
            handle.remove()
            assert is_one_call(model, input)
            handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
            try:
                assert not is_one_call(model, input)
            finally:
                handle.remove()
        assert len(seen) == 5

    @pytest.mark.parametrize("change", CHANGES)
    def test_the_folded_weights_follow_every_change(self, change: str) -> None:
        model = aigc_fast.optimize(chain(2, True, True, nn.LeakyReLU(0.1)))
        input = torch.randn(2, 4, 5, 5)
        with torch.no_grad():
            before = model(input)
            CHANGES[change](model)
            input = input.to(model[0].weight.dtype)
            found, expected = model(input), nn.Sequential.forward(model, input)
        assert relative_error(found, expected) < 2e-6
        assert change == "dtype" or relative_error(found, before) > 1e-3

    def test_inference_mode(self) -> None:
        with torch.inference_mode():
            model = aigc_fast.optimize(chain(2, True, True, nn.ReLU()))
            input = torch.randn(2, 4, 5, 5)
            assert relative_error(model(input), nn.Sequential.forward(model, input)) < 2e-6
        model = aigc_fast.optimize(chain(2, True, True, nn.ReLU()))
        with torch.inference_mode():
            model(input)
        with torch.no_grad():
            assert relative_error(model(input), nn.Sequential.forward(model, input)) < 2e-6

    @pytest.mark.parametrize(
        "model",
        [
            nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.ELU(), nn.ConvTranspose2d(6, 2, 3), nn.Hardtanh()),
            nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.Dropout(0.5), nn.Conv2d(6, 3, 1), nn.ReLU(inplace=True)),
        ],
        ids=str,
    )
    def test_odd_chains_give_the_same_numbers(self, model: nn.Sequential) -> None:
        model = with_statistics(copy.deepcopy(model)).eval()
        stock = copy.deepcopy(model)
        assert_same(aigc_fast.optimize(model), stock, torch.randn(3, 4, 7, 7))

    def test_inputs_that_the_norm_refuses_are_refused(self) -> None:
        model = aigc_fast.optimize(chain(2, True, True, nn.ReLU()))
        with torch.no_grad(), pytest.raises(ValueError, match="expected 4D input"):
            model(torch.randn(4, 5, 5))

    def test_restore(self) -> None:
        model = generator()
        stock = copy.deepcopy(model)
        aigc_fast.restore(aigc_fast.optimize(model))
        assert type(model) is nn.Sequential
        assert [type(module) for module in model] == [type(module) for module in stock]


def entered(*before: nn.Module, transposed: bool = False, padding: int = 1) -> nn.Sequential:
    cls = nn.ConvTranspose2d if transposed else nn.Conv2d
    return with_statistics(
        nn.Sequential(*before, cls(32, 48, 3, 1, padding), nn.BatchNorm2d(48), nn.LeakyReLU(0.3))
    ).eval()


ENTERED = {
    "LeakyReLU + Conv2d": lambda: entered(nn.LeakyReLU(0.2)),
    "ELU + Conv2d": lambda: entered(nn.ELU(0.7)),
    "SiLU + ConvTranspose2d": lambda: entered(nn.SiLU(), transposed=True),
    "ReflectionPad2d + Conv2d": lambda: entered(nn.ReflectionPad2d((1, 2, 3, 0)), padding=0),
    "ReflectionPad2d + ReLU + Conv2d": lambda: entered(nn.ReflectionPad2d(2), nn.ReLU(), padding=0),
}
NOT_ENTERED = {
    "sigmoid of a border is not 0": lambda: entered(nn.Sigmoid()),
    "it writes to its input": lambda: entered(nn.ReLU(inplace=True)),
    "two borders": lambda: entered(nn.ReflectionPad2d(2)),
    "a transposed convolution's border": lambda: entered(nn.ReflectionPad2d(2), transposed=True),
    "other axes": lambda: entered(nn.ReflectionPad1d(1), padding=0),
}


class TestWhatComesBefore:
    """An activation, or a mirrored border, before a convolution."""

    @pytest.mark.parametrize("name", ENTERED)
    def test_same_numbers(self, name: str) -> None:
        model = ENTERED[name]()
        stock = copy.deepcopy(model)
        (entry,) = aigc_fast.report(aigc_fast.optimize(model)).fused
        assert f"{name} + BatchNorm2d + LeakyReLU" in entry.layer
        assert_same(model, stock, torch.randn(2, 32, 37, 41))

    @pytest.mark.parametrize("name", NOT_ENTERED)
    def test_what_runs_by_itself(self, name: str) -> None:
        model = NOT_ENTERED[name]()
        first = type(model[0]).__name__
        (entry,) = aigc_fast.report(aigc_fast.optimize(model)).fused
        assert f"{first} + " not in entry.layer

    @pytest.mark.parametrize("name", ENTERED)
    def test_hooks_see_what_they_saw(self, name: str) -> None:
        model = aigc_fast.optimize(ENTERED[name]())
        seen: list[Tensor] = []
        model[0].register_forward_hook(lambda module, args, output: seen.append(output))
        input = torch.randn(1, 32, 19, 23)
        with torch.no_grad():
            model(input)
        assert torch.equal(seen[0], model[0](input))
