"""The typical call of each public function, against PyTorch's where it has one of that name, else our reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_fast import functional
from aigc_fast.bench.calls import TRAINING, Case
from aigc_fast.bench.contest import OURS, PYTORCH, Contest
from aigc_fast.bench.parity import check_parity, check_peer, worst_error
from aigc_fast.ops.examples import Call, Form
from aigc_fast.runtime.activations import FUNCTIONS, Activation, name_and_slope
from aigc_fast.runtime.backends import backend

REFERENCE = "reference"

Function = Callable[..., Any]


def example(case: Case) -> Contest:
    """A function's typical call, of random numbers; arguments that follow from them are not timed."""
    ours, form = getattr(functional, case.name), case.call.typical
    tensors, trains = [torch.randn(shape) / 2 for shape in form.shapes], case.mode == TRAINING
    run = partial(_run, call=form.call(*tensors), trains=trains)
    twin = getattr(F, case.name, None) or getattr(torch, case.name, None)
    if twin and "activation" in form.call(*tensors)[1]:
        twin = followed(twin)
    peers = {PYTORCH: partial(run, twin)} if twin else {REFERENCE: partial(run, partial(_by_reference, ours))}
    exact = partial(_run, call=form.call(*(tensor.double() for tensor in tensors)), trains=trains)
    return Contest({OURS: partial(run, ours)}, peers, partial(_gate, case, run, exact))


def followed(twin: Function) -> Function:
    """PyTorch's function and the activation that follows, which ours has in one call."""

    def run(*args: Any, activation: Activation = None, **options: Any) -> Tensor:
        name, slope = name_and_slope(activation)
        return FUNCTIONS[name](twin(*args, **options), slope)

    return run


def _run(function: Function, call: Call, trains: bool) -> Sequence[Tensor]:
    """The results, or where it trains, the gradients of their sum."""
    args, options = call
    if not trains:
        with torch.no_grad():
            return _several(function(*args, **options))
    leaves = [arg.detach().requires_grad_() if _is_differentiable(arg) else arg for arg in args]
    results = _several(function(*leaves, **options))
    return torch.autograd.grad(
        results, [leaf for leaf in leaves if _is_differentiable(leaf)], list(map(_ones, results))
    )


def _is_differentiable(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _ones(result: Tensor) -> Tensor:
    return torch.ones((), dtype=result.dtype).expand_as(result)


def _by_reference(function: Function, *args: Any, **options: Any) -> Any:
    with backend("reference"):
        return function(*args, **options)


def _seeded(run: Function, function: Function, seed: int) -> Sequence[Tensor]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return run(function)


def _gate(case: Case, run: Function, exact: Function) -> tuple[float, float]:
    """Against the reference in float64; what is random, in float32, where both draw the same numbers."""
    ours = getattr(functional, case.name)
    reference = partial(_by_reference, ours)
    found, stock = _seeded(run, ours, 0), _seeded(run, reference, 0)
    if not _is_random(reference, case.call.small):
        return check_parity(found, stock, exact(reference), torch.float32)
    check_peer(REFERENCE, found, stock, torch.float32)
    return worst_error(found, stock), 0.0


def _is_random(function: Function, form: Form) -> bool:
    run = partial(_run, call=form.call(*map(torch.ones, form.shapes)), trains=False)
    return not all(map(torch.equal, _seeded(run, function, 0), _seeded(run, function, 1)))
