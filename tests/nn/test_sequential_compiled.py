"""nn.FusedSequential in a compiled graph: a chain is one op, forward and backward, with the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import generator, with_statistics
from parity import relative_error
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop

import aigc_fast


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


class Compiled:
    """A model after `optimize`, compiled without a break of the graph, and the ops of its graphs in order."""

    def __init__(self, model: nn.Module) -> None:
        self.ops: list[str] = []
        self.model = aigc_fast.optimize(model)

        def keep(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable:
            ours = (node for node in graph.graph.nodes if "aigc_fast" in str(node.target))
            self.ops += [str(node.target).split(".")[1] for node in ours]
            return boxed_nop(graph, example_inputs)

        backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
        self._run = torch.compile(self.model, fullgraph=True, backend=backend)

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.ops.clear()
        return self._run(*inputs)


def discriminator() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, 1, 2),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.0),
        nn.Conv2d(6, 8, 3, 2, 1, groups=2, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 5, 4, 2, 1),
        nn.Sigmoid(),
        nn.GroupNorm(5, 5),
        nn.SiLU(),
        nn.Conv2d(5, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
    )


def assert_steps_alike(ours: Callable[[Tensor], Tensor], model: nn.Module, stock: nn.Module, input: Tensor) -> None:
    """Numbers and all gradients, the input's too, are as near float64 as stock ones."""
    exact = copy.deepcopy(stock).double()
    found = []
    for call, owner, dtype in (
        (ours, model, torch.float32),
        (stock, stock, torch.float32),
        (exact, exact, torch.float64),
    ):
        own = input.to(dtype).requires_grad_()
        output = call(own)
        weight = torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)
        found.append([output, *torch.autograd.grad((output * weight).sum(), [own, *owner.parameters()])])
    for of_ours, of_stock, right in zip(*found, strict=True):
        assert relative_error(of_ours, right) <= max(2 * relative_error(of_stock, right), 2e-6)


def test_a_training_step_has_the_stock_numbers() -> None:
    stock, input = with_statistics(discriminator()), torch.randn(3, 1, 9, 11)
    ours = Compiled(copy.deepcopy(stock))
    assert_steps_alike(ours, ours.model, stock, input)
    assert ours.ops == [
        "conv_activation",
        "conv_activation",
        "conv_transpose_activation",
        "group_norm",
        "conv",
        *("conv_gradients", "group_norm_backward", *["conv_gradients"] * 3),
    ]
    assert torch.equal(ours.model[-2].num_batches_tracked, stock[-2].num_batches_tracked)
    assert relative_error(ours.model[-2].running_var, stock[-2].running_var) < 1e-5


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_every_dimension(dims: int, transposed: bool) -> None:
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    # An output_padding of a whole stride adds elements that no input element reaches.
    extra = {"output_padding": 2, "dilation": 3} if transposed else {"dilation": 2}
    model = nn.Sequential(getattr(nn, name)(3, 4, 3, stride=2, padding=1, **extra), nn.LeakyReLU(0.3, inplace=True))
    ours = Compiled(copy.deepcopy(model))
    assert_steps_alike(ours, ours.model, model, torch.randn(2, 3, *[7] * dims))
    assert ours.ops[-1] == "conv_gradients"


def test_a_layer_that_wants_no_gradient_gets_none() -> None:
    stock, input = discriminator()[:7], torch.randn(2, 1, 8, 8)
    stock[0].requires_grad_(False)
    stock[3].weight.requires_grad_(False)
    ours = Compiled(copy.deepcopy(stock))
    for call in (ours, stock):
        call(input).square().sum().backward()
    for mine, theirs in zip(ours.model.parameters(), stock.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or relative_error(mine.grad, theirs.grad) < 5e-6


class TestAtInference:
    def test_a_norm_is_folded_and_follows_every_change(self) -> None:
        stock = with_statistics(generator()).eval()
        ours, input = Compiled(copy.deepcopy(stock)), torch.randn(3, 10)
        changes: list[Callable[[nn.Module], object]] = [
            lambda model: None,
            lambda model: model[4].weight.mul_(2),
            lambda model: model[4].weight.data.mul_(-2),
            lambda model: model[5].running_var.data.fill_(3),
            lambda model: setattr(model[5], "eps", 0.5),
            lambda model: setattr(model[6], "negative_slope", 0.7),
            lambda model: setattr(model[6], "negative_slope", -0.7),
            lambda model: model[5].train(),
        ]
        with torch.no_grad():
            for number, change in enumerate(changes):
                for model in (ours.model, stock):
                    change(model)
                assert relative_error(ours(input), stock(input)) < 2e-6, number
                if number == 0:
                    assert ours.ops == ["conv_batch_norm_activation", "conv_transpose_activation"]

    def test_it_is_not_where_a_gradient_is_wanted(self) -> None:
        stock, input = with_statistics(generator()).eval(), torch.randn(3, 10)
        ours = Compiled(copy.deepcopy(stock))
        assert_steps_alike(ours, ours.model, stock, input)
        assert "conv_batch_norm_activation" not in ours.ops

    def test_without_room_to_keep_the_folded_weight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aigc_fast.nn.folding.store.hold", lambda *args: False)
        stock, input = with_statistics(generator()).eval(), torch.randn(3, 10)
        ours = Compiled(copy.deepcopy(stock))
        with torch.no_grad():
            assert relative_error(ours(input), stock(input)) < 2e-6


def test_hooks_of_inner_modules_are_called() -> None:
    model, seen = discriminator(), []
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    stock = copy.deepcopy(model)
    model[4].register_forward_hook(lambda *_: seen.append("called"))
    ours, input = Compiled(model), torch.randn(2, 1, 8, 8)
    assert relative_error(ours(input), stock(input)) < 2e-6
    assert "conv" in ours.ops
    assert seen


def test_the_output_of_leaky_relu_may_be_written_to() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.2))
    stock, input = copy.deepcopy(model), torch.randn(2, 4, 5, 5)
    ours = Compiled(model)
    for call in (ours, stock):
        output = call(input)
        output += 1
        output.square().sum().backward()
    for mine, theirs in zip(ours.model.parameters(), stock.parameters(), strict=True):
        assert relative_error(mine.grad, theirs.grad) < 5e-6


def test_bfloat16_autocast() -> None:
    stock, input = with_statistics(generator()).eval(), torch.randn(3, 10)
    ours = Compiled(copy.deepcopy(stock))
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(input.double())
        with torch.autocast("cpu", torch.bfloat16):
            output, theirs = ours(input), stock(input)
    assert output.dtype == theirs.dtype
    assert relative_error(output, exact) <= max(2 * relative_error(theirs, exact), 6e-3)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_ops_of_graphs_keep_what_they_promise(transposed: bool) -> None:
    input, weight, bias = torch.randn(2, 4, 6, 5), torch.randn(4, 4, 3, 3), torch.randn(4)
    extra = [1, 0] if transposed else None
    sizes = [2, 2], [1, 1], extra, [1, 1], 1, "leaky_relu", 0.2
    norm = torch.rand(4), None, torch.randn(4), torch.rand(4) + 0.5, 1e-5
    utilities = ("test_schema", "test_faketensor")
    arguments = input, weight, bias, *norm, *sizes
    folded = torch.ops.aigc_fast.conv_batch_norm_activation.default
    torch.library.opcheck(folded, arguments, test_utils=utilities)
    output = folded(*arguments)
    for wanted in ([True, True, True], [False, True, False]):
        gradients = torch.ops.aigc_fast.conv_gradients.default
        arguments = torch.randn_like(output), input, weight, output, *sizes, wanted
        torch.library.opcheck(gradients, arguments, test_utils=utilities)
