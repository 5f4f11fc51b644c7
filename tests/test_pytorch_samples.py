"""PyTorch's own samples of every function and module that has a twin here: values, gradients, buffers and refusals.

`torch.testing._internal` lists for each the calls that PyTorch's suite makes, good and bad ones. What PyTorch refuses
is refused here with an error of the same kind; what it takes gives the same, in every dtype that it takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as TF
from parity import FEW_NUMBERS, FLOORS, ROUNDINGS, assert_parity
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import BackendError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

OPS = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.startswith("nn.functional.")}
FUNCTIONS = [name for name in AF.__all__ if name in OPS]
MODULES = {info.module_cls.__name__: info for info in module_db if info.module_cls.__module__.startswith("torch.nn.")}
TWINS = [name for name in aigc_fast.nn.__all__ if name in MODULES]
# What PyTorch has no samples of: tests/nn and tests/ops hold these to it.
WITHOUT_SAMPLES = {"Dropout", "varlen_attn"}
FORCED = ("auto", "cpu") if native.cpu_reason() is None else ("auto",)
BACKENDS = {torch.float32: FORCED, torch.bfloat16: FORCED}
OTHER_DTYPES = torch.float64, torch.float16, torch.complex64, torch.int64
# Beside values of up to 9 and norms' factors of up to 316, a difference of numbers that are the same is no zero.
TOLERANCES = {dtype: {"rtol": FLOORS[dtype], "atol": 1e-4} for dtype in (torch.float32, torch.bfloat16, torch.float16)}
Call = Callable[..., Any]


class Case(NamedTuple):
    """A call on both sides, with the same arguments."""

    ours: Call
    theirs: Call
    args: tuple[Any, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        flat, spec = tree_flatten((self.args, self.options))
        return str(tree_unflatten([tuple(each.shape) if isinstance(each, Tensor) else each for each in flat], spec))


class Found(NamedTuple):
    """What came of a call: outputs, arguments and, from the place `values` on, gradients; or the error."""

    tensors: list[Tensor | None]
    values: int = 0
    error: Exception | None = None

    def at(self, places: list[int]) -> Tensor:
        """Those tensors as one."""
        return torch.cat([self.tensors[place].flatten() for place in places])


def _fresh(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy with the tensor's strides, in another dtype where it is of floating point and one is given."""
    memory = tensor.detach()
    whole = torch.empty(0, dtype=tensor.dtype).set_(memory.untyped_storage()).clone()
    if dtype is not None and tensor.is_floating_point():
        whole = whole.to(dtype)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).requires_grad_(tensor.requires_grad)


def run(call: Call, case: Case, dtype: torch.dtype | None = None) -> Found:
    """Outputs, the arguments as the call leaves them, and the gradients to those that want one."""
    flat, spec = tree_flatten((case.args, case.options))
    flat = [_fresh(each, dtype) if isinstance(each, Tensor) else each for each in flat]
    args, options = tree_unflatten(flat, spec)
    given = [each for each in flat if isinstance(each, Tensor)]
    try:
        outputs = [each for each in tree_leaves(call(*args, **options)) if isinstance(each, Tensor)]
        found: list[Tensor | None] = [each.detach() for each in (*outputs, *given)]
        values = len(found)
        inputs = [each for each in given if each.requires_grad and each.is_leaf]
        outputs = [output for output in outputs if output.requires_grad]
        if inputs and outputs:
            random = torch.Generator().manual_seed(1)
            upstream = [torch.randn(each.shape, generator=random).to(each.dtype) for each in outputs]
            found += torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
    except Exception as error:
        return Found([], error=error)
    return Found(found, values)


def assert_same(case: Case, backend: str, theirs: Found, where: str) -> None:
    """Ours is PyTorch's within its own tolerances, or as near to float64 as the suite asks; or both refuse alike."""
    with aigc_fast.backend(backend):
        ours = run(case.ours, case)
    if backend != "auto" and isinstance(ours.error, BackendError):
        return
    if theirs.error is not None:
        kinds = type(theirs.error), type(ours.error)
        alike = issubclass(kinds[1], kinds[0]) or (ours.error is not None and issubclass(*kinds))
        assert alike, f"{where}: PyTorch refuses by {theirs.error!r}, found {ours.error!r}"
        return
    assert ours.error is None, f"{where}: {ours.error!r}"
    for index, (found, expected) in enumerate(zip(ours.tensors, theirs.tensors, strict=True)):
        if found is None and expected is None:
            continue
        try:
            torch.testing.assert_close(found, expected, **TOLERANCES.get(expected.dtype, {}), equal_nan=True)
        except AssertionError as error:
            if found is None or found.dtype not in FLOORS or found.shape != expected.shape:
                raise AssertionError(f"{where}, result {index}: {error}") from None
            places = [index]
            if index >= ours.values and found.numel() < FEW_NUMBERS:
                tensors = enumerate(theirs.tensors)
                places = [place for place, each in tensors if place >= ours.values and each is not None]
            exact = run(case.theirs, case, torch.float64)
            nearby = run(case.theirs, _a_rounding_away(case), torch.float64)
            sides = (side.at(places) for side in (ours, theirs, exact))
            assert_parity(*sides, f"{where}, result {index}", nearby.at(places))


def _a_rounding_away(case: Case) -> Case:
    """Inputs so near that `ROUNDINGS` times the distance is a rounding of their format, or as many of float32."""
    flat, spec = tree_flatten((case.args, case.options))
    for index, each in enumerate(flat):
        if isinstance(each, Tensor) and each.is_floating_point():
            step = max(torch.finfo(torch.float32).eps, torch.finfo(each.dtype).eps / ROUNDINGS)
            near = each.detach().double() * (1 + step * (torch.rand(each.shape) - 0.5).sign())
            flat[index] = near.requires_grad_(each.requires_grad)
    args, options = tree_unflatten(flat, spec)
    return case._replace(args=args, options=options)


def check(case: Case, dtype: torch.dtype) -> None:
    theirs = run(case.theirs, case)
    for backend in BACKENDS.get(dtype, ("auto",)):
        assert_same(case, backend, theirs, f"{case} by {backend}")


def _is_random(name: str, options: dict[str, Any]) -> bool:
    if name == "dropout":
        return options.get("training", True) and 0 < options.get("p", 0.5) < 1
    return options.get("dropout_p", 0) > 0


def _calls(name: str, dtype: torch.dtype) -> Iterator[Case]:
    samples = OPS[name].sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point)
    for sample in samples:
        if _is_random(name, sample.kwargs):
            continue
        yield Case(getattr(AF, name), getattr(TF, name), (sample.input, *sample.args), sample.kwargs)
        if dtype == torch.float32:
            apart = sample.noncontiguous()
            yield Case(getattr(AF, name), getattr(TF, name), (apart.input, *apart.args), apart.kwargs)


def _functional(module: nn.Module) -> Call:
    return lambda tensors, args, options: functional_call(module, tensors, args, options)


def _check_module(name: str, dtype: torch.dtype, training: bool, given: Any) -> None:
    made: list[nn.Module | Exception] = []
    for home in (aigc_fast.nn, nn):
        try:
            module = getattr(home, name)(*given.constructor_input.args, **given.constructor_input.kwargs)
            made.append(module.to(dtype).train(training))
        except Exception as error:
            made.append(error)
    ours, theirs = made
    if isinstance(theirs, Exception):
        assert isinstance(ours, type(theirs)), f"PyTorch refuses by {theirs!r}, found {ours!r}"
        return
    assert isinstance(ours, nn.Module), ours
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    tensors = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    call = given.forward_input
    check(Case(_functional(ours), _functional(theirs), (tensors, tuple(call.args), call.kwargs), {}), dtype)


def test_every_twin_has_samples() -> None:
    pytorchs = {name for name in AF.__all__ if hasattr(TF, name)}
    layers = {name for name in aigc_fast.nn.__all__ if hasattr(nn, name)}
    assert pytorchs | layers == {*FUNCTIONS, *TWINS} | (WITHOUT_SAMPLES & layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_of_a_function(name: str) -> None:
    for dtype in (*BACKENDS, *OTHER_DTYPES):
        for case in _calls(name, dtype):
            check(case, dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if OPS[name].error_inputs_func is not None])
def test_calls_that_pytorch_refuses(name: str) -> None:
    for each in OPS[name].error_inputs("cpu"):
        sample = each.sample_input
        check(
            Case(getattr(AF, name), getattr(TF, name), (sample.input, *sample.args), sample.kwargs),
            sample.input.dtype,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TWINS)
def test_samples_of_a_module(name: str) -> None:
    info = MODULES[name]
    # In training mode there may be more samples, of the same calls.
    for dtype, training in ((torch.float32, True), (torch.float32, False), (torch.bfloat16, True)):
        for given in info.module_inputs_func(info, "cpu", dtype, True, training):
            _check_module(name, dtype, training, given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in TWINS if MODULES[name].module_error_inputs_func is not None])
def test_modules_that_pytorch_refuses(name: str) -> None:
    info = MODULES[name]
    for each in info.module_error_inputs_func(info, "cpu", torch.float32, False, True):
        _check_module(name, torch.float32, True, each.module_error_input)
