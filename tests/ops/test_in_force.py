"""What was in force in forward, backend and precision, is in force in backward: later, and on any thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from calls import CASES, Case, leaves
from parity import float32_precision, relative_error
from places import ELSEWHERE, HERE, INTERPRETER, Place, moved, there
from torch import Tensor
from watching import launches, profiled

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
DIFFERENTIABLE = {name: case for name, case in CASES.items() if name not in ("rand", "randn")}
# They take the same ops as conv1d.
SLOW_IN_INTERPRETER = {"conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
FORCED = ["reference", pytest.param("cpu", marks=needs_native)]
REFERENCE = Place("reference")


def ran(function: Callable[[], Any]) -> tuple[set[str], Counter[str]]:
    """PyTorch's ops and the native kernels that the function runs when all plans are made."""
    with launches() as launched:
        seen = profiled(function)
    return {name for name in seen if name.startswith("aten::")}, Counter(launched)


def on_another_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def run_forward(case: Case, place: Place) -> tuple[Tensor, list[Tensor]]:
    tensors = leaves(moved(case.inputs(), place))
    with place.in_force():
        return case.ours(*tensors), tensors


def differentiate(output: Tensor, tensors: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(output.sin().sum(), tensors, create_graph=create_graph))


def in_places(names: Iterable[str]) -> pytest.MarkDecorator:
    """A function with gradients, in each place where it has them."""
    forced = [place for place in HERE + ELSEWHERE if place.backend != "auto"]
    pairs = [
        (name, place)
        for name in names
        for place in forced
        if there(name, place, True) and not (place is INTERPRETER and name in SLOW_IN_INTERPRETER)
    ]
    return pytest.mark.parametrize(
        ("name", "place"),
        [pytest.param(name, place, id=f"{name}-{place}", marks=place.marks) for name, place in pairs],
    )


@pytest.mark.parametrize("where", [lambda f: f(), on_another_thread], ids=["outside", "thread"])
@in_places(DIFFERENTIABLE)
def test_backward_runs_the_backend_of_forward(name: str, place: Place, where: Any) -> None:
    case = DIFFERENTIABLE[name]
    with place.in_force():
        differentiate(*run_forward(case, place))
        expected = ran(lambda: differentiate(*run_forward(case, place)))
    output, tensors = [], []

    def forward() -> None:
        found = run_forward(case, place)
        output.append(found[0])
        tensors.extend(found[1])

    in_forward = ran(forward)
    other = "cpu" if place == REFERENCE and native.cpu_reason() is None else "reference"

    def backward() -> tuple[set[str], Counter[str]]:
        with aigc_fast.backend(other):
            return ran(lambda: differentiate(output[0], tensors))

    found = where(backward)
    assert in_forward[0] | found[0] == expected[0]
    assert in_forward[1] + found[1] == expected[1]
    assert bool(expected[1]) == (place.backend != "reference")


@in_places(name for name in DIFFERENTIABLE if name != "dropout")
def test_a_second_derivative_runs_it_too(name: str, place: Place) -> None:
    case = DIFFERENTIABLE[name]

    def second(tensors: list[Tensor], first: list[Tensor]) -> None:
        torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors, allow_unused=True)

    output, tensors = run_forward(case, place)
    with place.in_force():
        second(tensors, differentiate(output, tensors, create_graph=True))
        output, tensors = run_forward(case, place)
        expected = ran(lambda: second(tensors, differentiate(output, tensors, create_graph=True)))
    output, tensors = run_forward(case, place)
    found = ran(lambda: second(tensors, differentiate(output, tensors, create_graph=True)))
    assert found == expected


@pytest.mark.parametrize("forced", FORCED)
@pytest.mark.parametrize("name", ["conv_transpose2d", "scaled_dot_product_attention", "ar_recursion"])
def test_a_graph_obeys_the_block_in_which_it_runs(name: str, forced: str) -> None:
    case = DIFFERENTIABLE[name]
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    tensors = leaves(case.inputs())
    with aigc_fast.backend(forced):
        found = ran(lambda: differentiate(compiled(*tensors), tensors))
    assert bool(found[1]) == (forced == "cpu")


@needs_native
def test_what_was_chosen_in_forward_is_not_forced_in_backward() -> None:
    input, weight = torch.randn(2, 32, 16, 16, requires_grad=True), torch.randn(32, 32, 4, 4, requires_grad=True)
    output = AF.conv_transpose2d(input, weight, stride=2)
    with aigc_fast.backend("reference"):
        _, found = ran(lambda: differentiate(output, [input, weight]))
    assert found["conv_weight_gradient"] == 1


def unpackings(function: Callable[[], Tensor]) -> list[int]:
    """How often each tensor that the function's graph saved is unpacked in its backward."""
    unpacked: list[int] = []

    def pack(tensor: Tensor) -> tuple[int, Tensor]:
        unpacked.append(0)
        return len(unpacked) - 1, tensor

    def unpack(packed: tuple[int, Tensor]) -> Tensor:
        unpacked[packed[0]] += 1
        return packed[1]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = function()
    output.sum().backward()
    return unpacked


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_backward_unpacks_what_was_saved_once(name: str, backend: str) -> None:
    case = DIFFERENTIABLE[name]
    assert all(times <= 1 for times in unpackings(lambda: case.ours(*leaves(case.inputs()))))


def test_fused_layers_unpack_what_was_saved_once(backend: str) -> None:
    model = aigc_fast.optimize(torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()))
    x = torch.randn(2, 16, 9, 9, requires_grad=True)
    assert all(times <= 1 for times in unpackings(lambda: model(x)))
    for reentrant in (False, True):
        checkpointed = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        (found,) = torch.autograd.grad(checkpointed.sum(), x) if not reentrant else (None,)
        if not reentrant:
            (expected,) = torch.autograd.grad(model(x).sum(), x)
            assert torch.equal(found, expected)


@needs_native
def test_batched_gradients_unpack_what_was_saved_once() -> None:
    input, weight = torch.randn(1, 8, 6, requires_grad=True), torch.randn(8, 8, 3, requires_grad=True)
    unpacked: list[int] = []

    def unpack(tensor: Tensor) -> Tensor:
        unpacked.append(1)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack), aigc_fast.backend("cpu"):
        output = AF.conv1d(input, weight)
    torch.autograd.grad(output, (input, weight), torch.randn(5, *output.shape), is_grads_batched=True)
    assert len(unpacked) == 2


def switches_during(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    function()
    return seen


class TestPrecision:
    """A layer's own precision holds in its own calls and derivatives, and nowhere else."""

    MODELS = (
        lambda: torch.nn.ConvTranspose2d(64, 64, 4, 2, 1),
        lambda: torch.nn.Conv2d(64, 64, 3, padding=1),
        lambda: torch.nn.Sequential(torch.nn.ConvTranspose2d(64, 64, 4, 2, 1), torch.nn.ReLU()),
    )

    @staticmethod
    def results(model: torch.nn.Module, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
        x = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = (model if call is None else call)(x)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), [x, *model.parameters()])]

    def pairs(self, make: Callable[[], torch.nn.Module]) -> tuple[torch.nn.Module, torch.nn.Module]:
        exact = make()
        own = make()
        own.load_state_dict(exact.state_dict())
        return aigc_fast.optimize(exact), aigc_fast.optimize(own, precision="medium")

    @needs_native
    @pytest.mark.parametrize("make", MODELS, ids=["transposed", "convolution", "fused"])
    def test_it_is_that_of_the_switch(self, make: Any, isa: str) -> None:
        plain, own = self.pairs(make)
        with aigc_fast.backend("cpu"):
            found = self.results(own)
            with float32_precision("medium"):
                expected = self.results(plain)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @needs_native
    @pytest.mark.parametrize("make", MODELS, ids=["transposed", "convolution", "fused"])
    def test_a_compiled_graph_has_it(self, make: Any) -> None:
        _, own = self.pairs(make)
        with aigc_fast.backend("cpu"):
            expected = self.results(own)
            found = self.results(own, torch.compile(own, fullgraph=True, backend="aot_eager"))
        assert all(torch.equal(a, b) for a, b in zip(found[:1], expected[:1], strict=True))
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < 1e-6

    def test_the_switch_of_the_process_is_never_touched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for make in self.MODELS:
            _, own = self.pairs(make)
            assert switches_during(lambda own=own: self.results(own), monkeypatch) == []
        attention = aigc_fast.optimize(torch.nn.MultiheadAttention(32, 4, batch_first=True), precision="medium")
        x = torch.randn(2, 70, 32)
        assert switches_during(lambda: attention(x, x, x, need_weights=False), monkeypatch) == []

    def test_threads_have_their_own(self) -> None:
        _, own = self.pairs(self.MODELS[0])
        x = torch.randn(2, 64, 8, 8)

        def run() -> None:
            for _ in range(50):
                own(x)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_float32_matmul_precision() == "highest"

    @needs_native
    def test_functions_take_it(self) -> None:
        input, weight = torch.randn(4, 64, 16, 16), torch.randn(64, 64, 4, 4)
        with aigc_fast.backend("cpu"):
            found = AF.conv_transpose2d(input, weight, stride=2, precision="medium")
            exact = AF.conv_transpose2d(input, weight, stride=2)
            with float32_precision("medium"):
                expected = AF.conv_transpose2d(input, weight, stride=2)
                over = AF.conv_transpose2d(input, weight, stride=2, precision="highest")
        assert torch.equal(found, expected)
        assert torch.equal(over, exact)

    @pytest.mark.parametrize("size", [4, 64])
    def test_an_unknown_one_is_refused(self, size: int) -> None:
        message = "precision='low': expected one of highest, high, medium, or None"
        input = torch.randn(1, size, size, size)
        with pytest.raises(ValueError, match=message):
            AF.conv2d(input, torch.randn(size, size, 3, 3), precision="low")
        with pytest.raises(ValueError, match=message):
            AF.conv_transpose2d(input, torch.randn(size, size, 3, 3), precision="low")
        with pytest.raises(ValueError, match=message):
            AF.scaled_dot_product_attention(input, input, input, precision="low")
