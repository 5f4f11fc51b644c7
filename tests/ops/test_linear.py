"""Linear layers with the activation that follows: parity, gradients, kept weights, choice and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from cases import LINEARS, Linear
from convolution_checks import double_gradient, doubled, every_gradient, needs_native
from parity import assert_parity, float32_precision, relative_error
from torch import Tensor
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.linear import choice
from aigc_fast.runtime import native, tuning
from aigc_fast.runtime.activations import FUNCTIONS

needs_kernels = needs_native
SLOPES = {"leaky_relu": 0.01, "elu": 1.0}


def assert_alike(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor], name: str) -> None:
    for index, (found, peer, wanted) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(found, peer, wanted, f"{name}: result {index}")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 5, 17, 100, 394])
def test_kept_weights_give_the_same_on_every_level(rows: int, dtype: torch.dtype, isa: str) -> None:
    input, weight, bias = (torch.randn(shape).to(dtype) for shape in ((rows, 113), (130, 113), (130,)))
    exact = TF.gelu(TF.linear(*doubled([input, weight, bias])))
    peer = TF.gelu(TF.linear(input, weight, bias))
    with aigc_fast.backend("cpu"), launches("linear", "linear_pack") as called:
        found = [AF.linear(input, weight, bias, "gelu") for _ in range(4)]
    for each in found:
        assert_parity(each, peer, exact)
    assert called.count("linear") >= 2
    assert called[-1] == "linear"
    with torch.no_grad():
        weight.mul_(2)
    with aigc_fast.backend("cpu"):
        assert_parity(AF.linear(input, weight, bias, "gelu"), *(f(TF.linear) for f in twice(input, weight, bias)))


def twice(*tensors: Tensor) -> tuple[Any, Any]:
    return lambda f: TF.gelu(f(*tensors)), lambda f: TF.gelu(f(*doubled(list(tensors))))


@needs_kernels
@pytest.mark.parametrize(
    "lay",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        lambda x: torch.cat([x, x, x], 1)[:, 1::3],
        lambda x: x[:1].expand(x.shape),
    ],
    ids=["transposed", "rows apart", "strided", "one row"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_strides_on_every_level(lay: Any, dtype: torch.dtype, isa: str) -> None:
    input, weight = lay(torch.randn(40, 70).to(dtype)), lay(torch.randn(33, 70).to(dtype))
    with aigc_fast.backend("cpu"):
        found = [AF.linear(input, weight) for _ in range(3)]
    exact = TF.linear(input.double(), weight.double())
    for each in found:
        assert_parity(each, TF.linear(input, weight), exact)


@needs_kernels
@pytest.mark.parametrize("activation", [name for name in FUNCTIONS if name != "none"])
def test_activations_are_within_two_units_in_the_last_place_on_every_level(activation: str, isa: str) -> None:
    input = torch.linspace(-9, 9, 30001)[:, None]
    with aigc_fast.backend("cpu"), launches("linear") as called:
        found = AF.linear(input, torch.ones(1, 1), None, activation)
    exact, peer = (FUNCTIONS[activation](x, SLOPES.get(activation, 0.0)) for x in (input.double(), input))
    unit = torch.exp2(exact.abs().clamp_min(torch.finfo(torch.float32).tiny).log2().floor() - 23)
    errors = [((each.double() - exact) / unit).abs().max().item() for each in (found, peer)]
    assert called
    assert errors[0] <= max(2, 2 * errors[1]), f"{errors[0]:.2f} units off, PyTorch's is {errors[1]:.2f}"


@needs_kernels
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (2, 100), (300, 1)])
def test_matrices_by_vectors_are_summed_in_parts_on_every_level(rows: int, columns: int, isa: str) -> None:
    """Sums of 384 products in a row leave 3.2e-7."""
    input, weight = torch.randn(rows, 513), torch.randn(columns, 513)
    with aigc_fast.backend("cpu"), launches("linear") as called:
        found = AF.linear(input, weight)
    assert called
    assert relative_error(found, TF.linear(input.double(), weight.double())) < 2.4e-7


@pytest.mark.parametrize("activation", [name for name in FUNCTIONS if name != "relu"])
@pytest.mark.parametrize("compute", [every_gradient, double_gradient])
def test_gradients_through_an_activation(activation: str, compute: Any, backend: str) -> None:
    tensors = [torch.randn(shape) for shape in ((3, 7, 20), (18, 20), (18,))]
    gradient, slope = torch.randn(3, 7, 18), SLOPES.get(activation, 0.0)

    def ours(*tensors: Tensor) -> Tensor:
        return AF.linear(*tensors, None if activation == "none" else activation)

    def theirs(*tensors: Tensor) -> Tensor:
        return FUNCTIONS[activation](TF.linear(*tensors), slope)

    if compute is double_gradient and activation in ("none", "leaky_relu"):
        pytest.skip("the gradients are linear")
    exact = compute(theirs, doubled(tensors), gradient.double())
    assert_alike(compute(ours, tensors, gradient), compute(theirs, tensors, gradient), exact, activation)


@needs_kernels
@pytest.mark.parametrize(("precision", "limit"), [("highest", 2e-6), ("high", 2e-5), ("medium", 6e-3)])
def test_precision_on_every_level(precision: str, limit: float, isa: str) -> None:
    input, weight = torch.randn(50, 100), torch.randn(70, 100)
    exact = TF.linear(input.double(), weight.double())
    with aigc_fast.backend("cpu"):
        with float32_precision(precision):
            found = AF.linear(input, weight)
        assert torch.equal(AF.linear(input, weight, precision=precision), found)
    assert relative_error(found, exact) < limit


@pytest.mark.parametrize("case", [case for case in LINEARS if case.inputs > 16], ids=str)
def test_compiled_with_gradients(case: Linear) -> None:
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    tensors, gradient = case.tensors(), torch.randn(*case.lead, case.outputs)
    torch.compiler.reset()
    for ours, theirs in zip(
        every_gradient(compiled, tensors, gradient), every_gradient(case.theirs, tensors, gradient), strict=True
    ):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("rows", [1, 4, 300])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_bias_of_one_number_is_every_outputs(rows: int, activation: str | None, backend: str) -> None:
    tensors = [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((rows, 60), (50, 60), (1,))]
    wanted = TF.linear(*tensors) if activation is None else TF.gelu(TF.linear(*tensors))
    floats = [tensor.detach().float().requires_grad_() for tensor in tensors]
    found = AF.linear(*floats, activation=activation)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(each.square().sum(), of) for each, of in ((found, floats), (wanted, tensors))]
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(AF.linear(*floats, activation=activation), found)


class TestBadInput:
    X, W = torch.randn(4, 6), torch.randn(5, 6)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda x, w: AF.linear(x[:, 1:], w),
                RuntimeError,
                "input has shape \\(4, 5\\): expected to end in weight's 6",
            ),
            (
                lambda x, w: AF.linear(x, w[None]),
                RuntimeError,
                r"weight has shape \(1, 5, 6\): expected \(out_features",
            ),
            (
                lambda x, w: AF.linear(x, w, x[0]),
                RuntimeError,
                r"bias has shape \(6,\): expected \(5,\), one per output",
            ),
            (lambda x, w: AF.linear(x, w.double()), RuntimeError, "weight has dtype torch.float64: expected input's"),
            (lambda x, w: AF.linear(None, w), TypeError, "input is NoneType: expected a Tensor"),
            (lambda x, w: AF.linear(x, w, 2), TypeError, "bias is int: expected a Tensor"),
            (lambda x, w: AF.linear(x, w, activation="swish"), ValueError, "activation='swish': expected None"),
            (lambda x, w: AF.linear(x, w, precision="low"), ValueError, "precision='low': expected one of"),
        ],
    )
    def test_a_line_names_the_argument(self, call: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            call(self.X, self.W)

    def test_odd_shapes(self, backend: str) -> None:
        if backend == "cpu":
            pytest.skip("the reference has them")
        assert AF.linear(self.X, self.W[0]).shape == (4,)
        assert AF.linear(self.X[0], self.W).shape == (5,)
        assert AF.linear(self.X[:0], self.W, activation="gelu").shape == (0, 5)
        assert torch.equal(AF.linear(self.X[:, :0], self.W[:, :0]), torch.zeros(4, 5))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_compiles_whole(dtype: torch.dtype) -> None:
    input, weight, bias = torch.randn(4, 20, 64, dtype=dtype), torch.randn(70, 64), torch.randn(70)
    compiled = torch.compile(AF.linear, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(compiled(input, weight, bias), torch.nn.functional.linear(input, weight, bias))


def test_autocast_takes_kept_weights_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512_bf16")
    monkeypatch.setattr(choice, "slower", lambda *args: None)
    tensors = [torch.randn(shape) for shape in ((300, 256), (512, 256), (512,))]
    exact = TF.linear(*doubled(tensors))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for _ in range(3):
            assert_parity(AF.linear(*tensors), TF.linear(*tensors), exact)
    tensors[1].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), launches("linear") as called:
        assert AF.linear(*tensors).requires_grad
    assert not called


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (1000, torch.float32), (8, torch.bfloat16)])
def test_what_is_pytorchs_at_once_is_so_by_the_choice(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "knows", lambda op: False)
    monkeypatch.setattr(choice, "has_foreign_products", lambda: False)
    tensors = [torch.empty(shape, dtype=dtype) for shape in ((rows, 1024), (2048, 1024))]
    at_once = choice.is_pytorchs_at_once(*tensors)
    assert at_once == (dtype == torch.float32)
    if at_once:
        assert choice.slower(*tensors, None, "none", 0.0) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("foreign", [True, False])
def test_gradients_that_are_pytorchs_are_so_at_once(
    dtype: torch.dtype, foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "knows", lambda op: False)
    monkeypatch.setattr(choice, "has_foreign_products", lambda: foreign)
    tensors = [torch.empty(shape, dtype=dtype) for shape in ((1000, 1024), (2048, 1024))]
    tensors[1].requires_grad_()
    assert choice.is_pytorchs_at_once(*tensors) == (choice.leave(*tensors) is not None)
    assert choice.is_pytorchs_at_once(*tensors) != (foreign and dtype == torch.float32)


@pytest.mark.parametrize(
    ("rows", "inputs", "intels", "left"),
    [(1024, 63, False, True), (1024, 64, False, False), (1023, 63, False, False), (1024, 63, True, False)],
)
def test_few_inputs_of_many_outputs_in_bfloat16_are_pytorchs_by_other_makers_processors(
    rows: int, inputs: int, intels: bool, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512_bf16")
    monkeypatch.setattr(choice, "is_intels", lambda: intels)
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((rows, inputs), (256, inputs))]
    assert (choice.slower(*tensors, None, "none", 0.0) is not None) == left
