"""Norms with the activation that follows: parity, gradients, layouts, choice and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from cases import NORMS, Norm
from convolution_checks import channels_last, double_gradient, doubled, every_gradient, needs_native
from parity import assert_parity, relative_error
from torch import Tensor
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.norm import choice
from aigc_fast.runtime import tuning
from aigc_fast.runtime.activations import DERIVATIVES, FUNCTIONS

MAPS = [case for case in NORMS if len(case.shape) in (4, 5) and case.function == "group_norm"]


def assert_alike(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor], name: str) -> None:
    for index, (found, peer, wanted) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(found, peer, wanted, f"{name}: result {index}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_channels_last_on_every_level(case: Norm, dtype: torch.dtype, isa: str) -> None:
    input, *affine = case.tensors(dtype)
    tensors = [channels_last(input), *affine]
    gradient = channels_last(torch.randn(case.shape).to(dtype))
    with aigc_fast.backend("cpu"), launches() as called:
        found = every_gradient(case.ours, tensors, gradient)
    assert called == ["group_norm", "group_norm_backward"]
    assert found[0].stride() == found[1].stride() == tensors[0].stride()
    exact = every_gradient(case.theirs, doubled(tensors), gradient.double())
    assert_alike(found, every_gradient(case.theirs, tensors, gradient), exact, str(case))


@needs_native
@pytest.mark.parametrize("layout", [lambda x: x, channels_last], ids=["planes", "channels_last"])
@pytest.mark.parametrize("mean", [0.0, 100.0, -3e4])
def test_statistics_of_numbers_far_from_zero(mean: float, layout: Any) -> None:
    """The deviation is a small part of the numbers, which a border of zeros parts from it in one half of them."""
    x = torch.randn(2, 8, 40, 50) + mean
    x[1, :, :2] = 0
    x = layout(x)
    exact = TF.group_norm(x.double(), 2)
    with aigc_fast.backend("cpu"):
        assert_parity(AF.group_norm(x, 2), TF.group_norm(x, 2), exact)
        assert_parity(AF.instance_norm(x), TF.instance_norm(x), TF.instance_norm(x.double()))
        assert_parity(AF.layer_norm(x, (50,)), TF.layer_norm(x, (50,)), TF.layer_norm(x.double(), (50,)))


@needs_native
@pytest.mark.parametrize("name", list(FUNCTIONS)[1:])
def test_activations_over_all_of_their_range_on_every_level(name: str, isa: str) -> None:
    """Planes of a plus and a minus one become themselves, and their weights what the activation sees."""
    weight = torch.cat([torch.linspace(0, 12, 3001), torch.logspace(-8, 2, 500)])
    planes = torch.tensor([1.0, -1.0]).expand(1, len(weight), 2).contiguous()
    slope = {"leaky_relu": 0.01, "elu": 1.0}.get(name, 0.0)

    def ours(weight: Tensor) -> Tensor:
        return AF.group_norm(planes, len(weight), weight, None, 0.0, name)

    def theirs(weight: Tensor) -> Tensor:
        normal = TF.group_norm(planes.to(weight.dtype), len(weight), weight, None, 0.0)
        return FUNCTIONS[name](normal, slope)

    gradient = torch.tensor([1.0, 0.5]).expand(planes.shape)
    with aigc_fast.backend("cpu"):
        found = every_gradient(
            lambda weight: AF.group_norm(planes, len(weight), weight, None, 0.0, name), [weight], gradient
        )
    exact = every_gradient(theirs, [weight.double()], gradient.double())
    assert_alike(found, every_gradient(theirs, [weight], gradient), exact, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_the_reference(name: str) -> None:
    x = torch.linspace(-6, 6, 241, dtype=torch.float64).add(1e-3).requires_grad_()
    (exact,) = torch.autograd.grad(FUNCTIONS[name](x, 0.3).sum(), x)
    assert relative_error(DERIVATIVES[name](x, 0.3), exact) < 1e-12


@pytest.mark.parametrize("case", [NORMS[0], NORMS[1], NORMS[7], NORMS[11]], ids=str)
def test_second_derivatives(case: Norm, backend: str) -> None:
    tensors, gradient = case.tensors(), torch.randn(case.shape)
    found = double_gradient(case.ours, tensors, gradient)
    with aigc_fast.backend("reference"):
        exact = double_gradient(case.theirs, doubled(tensors), gradient.double())
        peer = double_gradient(case.theirs, tensors, gradient)
    assert_alike(found, peer, exact, str(case))


@needs_native
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", [NORMS[6], NORMS[8], NORMS[13]], ids=str)
def test_what_is_not_finite_stays_in_its_group(case: Norm, value: float) -> None:
    input, *affine = case.tensors()
    input.view(-1)[1] = value
    with aigc_fast.backend("cpu"):
        found = case.ours(input, *affine)
    torch.testing.assert_close(found, case.theirs(input, *affine), rtol=1e-4, atol=1e-5, equal_nan=True)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    cases = [NORMS[4], NORMS[9], NORMS[16]]
    tensors = [case.tensors() for case in cases]
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            with aigc_fast.backend("cpu"):
                found.append([case.ours(*given) for case, given in zip(cases, tensors, strict=True)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_parameters_of_float32_beside_narrower_inputs(backend: str) -> None:
    input, weight, bias = torch.randn(2, 8, 5, 5).bfloat16(), torch.randn(8), torch.randn(8)
    leaves = [tensor.requires_grad_() for tensor in (input, weight, bias)]
    output = AF.group_norm(input, 2, weight, bias, activation="silu")
    assert_parity(output, TF.silu(TF.group_norm(input, 2, weight, bias)), TF.silu(TF.group_norm(*doubled_norm(leaves))))
    gradients = torch.autograd.grad(output.float().sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]


def doubled_norm(tensors: list[Tensor]) -> tuple[Any, ...]:
    input, weight, bias = doubled(tensors)
    return input, 2, weight, bias


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_pytorchs(training: bool) -> None:
    ours, theirs = (home.InstanceNorm2d(3, affine=True, track_running_stats=True) for home in (aigc_fast.nn, torch.nn))
    x = torch.randn(2, 3, 4, 5)
    for module in (ours, theirs):
        module.train(training)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    explained = aigc_fast.explain("instance_norm", x, ours.running_mean, ours.running_var)
    assert explained.reasons["cpu"] == "running statistics: PyTorch's own norm keeps and takes them"


class TestBadInput:
    X = torch.randn(2, 6, 4)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x: AF.group_norm(x, 4), RuntimeError, "num_groups=4: expected a divisor of input's 6 channels"),
            (lambda x: AF.group_norm(x, 0), RuntimeError, "num_groups=0: expected a divisor"),
            (lambda x: AF.group_norm(x[0, 0], 1), RuntimeError, r"input has shape \(4,\): expected at least 2"),
            (lambda x: AF.group_norm(x, 2, x[0, 0]), RuntimeError, r"weight has shape \(4,\): expected \(6,\)"),
            (lambda x: AF.group_norm(x[:1, :, 0], 6), ValueError, "expected more than 1 value per channel"),
            (lambda x: AF.group_norm(None, 2), TypeError, "input is NoneType: expected a Tensor"),
            (lambda x: AF.group_norm(x, 2, 3.0), TypeError, "weight is float: expected a Tensor"),
            (lambda x: AF.group_norm(x, 2.5), TypeError, "num_groups is float: expected an integer"),
            (lambda x: AF.group_norm(x, True), TypeError, "num_groups is bool: expected an integer"),
            (lambda x: AF.group_norm(x, 2, eps="1"), TypeError, "eps is str: expected a number"),
            (lambda x: AF.group_norm(x, 2, x[0, :, 0].double()), RuntimeError, "weight has dtype torch.float64"),
            (lambda x: AF.group_norm(x.double(), 2, None, x[0, :, 0]), RuntimeError, "bias has dtype torch.float32"),
            (lambda x: AF.instance_norm(x, weight=x[0, :, 0].bfloat16()), RuntimeError, "weight has dtype"),
            (
                lambda x: AF.instance_norm(x, x[0, :, 0], x[0, :, 0].exp(), x[0, :, 0].double(), x[0, :, 0].double()),
                RuntimeError,
                "dtype",
            ),
            (lambda x: AF.layer_norm(x, (4,), x[0, 0].bfloat16()), RuntimeError, "expected torch.float32, as input"),
            (
                lambda x: AF.layer_norm(x.bfloat16(), (4,), x[0, 0].half()),
                RuntimeError,
                "weight has dtype torch.float16: expected torch.bfloat16 or torch.float32, as input",
            ),
            (lambda x: AF.layer_norm(x, (4.0,)), TypeError, "normalized_shape is float: expected an integer"),
            (lambda x: AF.layer_norm(x, (4,), eps=None), TypeError, "eps is NoneType: expected a number"),
            (
                lambda x: AF.group_norm(x, 2, activation="swish"),
                ValueError,
                "activation='swish': expected None, one of",
            ),
            (lambda x: AF.group_norm(x, 2, activation=("relu", 1)), ValueError, "'leaky_relu' or 'elu', its slope"),
            (lambda x: AF.group_norm(x, 2, activation=3), ValueError, "activation=3: expected"),
            (lambda x: AF.instance_norm(x[:, :, :1]), ValueError, "with more than 1 value per channel"),
            (lambda x: AF.instance_norm(x[:, 0]), ValueError, r"input has shape \(2, 4\)"),
            (lambda x: AF.instance_norm(x, bias=x[0, 0]), RuntimeError, r"bias has shape \(4,\): expected \(6,\)"),
            (lambda x: AF.layer_norm(x, 4), TypeError, "normalized_shape is int: expected a sequence"),
            (lambda x: AF.layer_norm(x, ()), RuntimeError, r"normalized_shape=\(\): expected at least one dimension"),
            (lambda x: AF.layer_norm(x, (6,)), RuntimeError, r"expected to end in normalized_shape=\(6,\)"),
            (lambda x: AF.layer_norm(x, (4,), x[0]), RuntimeError, r"weight has shape \(6, 4\): expected \(4,\)"),
        ],
    )
    def test_a_line_names_the_argument(self, call: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            call(self.X)

    def test_empty_inputs(self) -> None:
        x, weight = (torch.zeros(shape, requires_grad=True) for shape in ((0, 6, 4), (6,)))
        output = AF.group_norm(x, 2, weight, activation="silu")
        assert output.shape == x.shape
        assert torch.equal(torch.autograd.grad(output.sum(), weight)[0], torch.zeros(6))
        assert AF.group_norm(torch.zeros(2, 6, 0), 2).shape == (2, 6, 0)
        assert AF.layer_norm(torch.zeros(0, 4), (4,)).shape == (0, 4)


@pytest.mark.parametrize("intels", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [2, 8, 32])
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_pytorchs_at_once_is_so_by_the_choice(
    groups: int,
    activation: str,
    dtype: torch.dtype,
    layout: torch.memory_format,
    intels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "knows", lambda op: False)
    monkeypatch.setattr(choice, "is_intels", lambda: intels)
    input = torch.empty(2, 32, 64, 64, dtype=dtype).to(memory_format=layout).requires_grad_()
    rest = None, None, groups, 1e-5, activation, 0.0
    with torch.no_grad():
        at_once = choice.is_pytorchs_at_once(input, groups, activation)
    assert at_once or not (groups < 32 and activation == "none" and dtype == torch.float32)
    assert not at_once or choice.group_slower(input, *rest) is not None
    if choice.is_pytorchs_at_once(input, groups, activation):
        assert choice.leave_groups(input, *rest) is not None


@pytest.mark.parametrize(
    ("shape", "groups", "dtype", "layout", "activation", "left", "left_with_gradients"),
    [
        ((8, 64, 32, 32), 8, torch.bfloat16, torch.channels_last, "none", False, False),
        ((8, 64, 32, 32), 4, torch.bfloat16, torch.channels_last, "none", True, True),
        ((8, 64, 32, 32), 4, torch.bfloat16, torch.channels_last, "silu", False, True),
        ((8, 64, 32, 32), 16, torch.float32, torch.channels_last, "silu", False, False),
        ((8, 64, 32, 32), 1, torch.float32, torch.channels_last, "silu", True, True),
        ((8, 64, 32, 32), 8, torch.float32, torch.contiguous_format, "silu", False, True),
        ((8, 64, 64, 64), 8, torch.float32, torch.contiguous_format, "silu", False, False),
        ((8, 64, 32, 32), 8, torch.bfloat16, torch.contiguous_format, "none", False, True),
        ((4, 64, 32, 32), 8, torch.bfloat16, torch.contiguous_format, "none", True, True),
        ((32, 128, 8, 8), 128, torch.float32, torch.contiguous_format, "none", False, True),
        ((32, 128, 9, 9), 128, torch.float32, torch.contiguous_format, "none", False, False),
    ],
)
def test_what_other_makers_processors_leave_to_pytorch(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    activation: str,
    left: bool,
    left_with_gradients: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "is_intels", lambda: False)
    monkeypatch.setattr(choice, "has_wide_vectors", lambda: True)
    input = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)
    rest = None, None, groups, 1e-5, activation, 0.0
    assert (choice.group_slower(input, *rest) is not None) == left
    assert (choice.leave_groups(input, *rest) is not None) == left_with_gradients
