"""Times layers both ways in the calls that the model really makes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

ROUNDS = 5
_SECONDS_PER_ROUND = 0.02
_MOST_CALLS_PER_ROUND = 20


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module, cut off from the graph that they came from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def signature(self) -> tuple[Any, ...]:
        """What tells calls of different cost apart."""
        tensors = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]
        return tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad) for tensor in tensors)

    def device(self) -> torch.device | None:
        """The first tensor's device."""
        tensors = (value for value in self.args if isinstance(value, Tensor))
        return next((tensor.device for tensor in tensors), None)


def captured_calls(model: nn.Module, modules: list[nn.Module], example_inputs: Any) -> dict[nn.Module, list[Call]]:
    """Runs the model once and keeps each module's calls, one for each different signature.

    Raises:
        ValueError: when the model can't be called with `example_inputs`.
    """
    calls: dict[nn.Module, dict[tuple[Any, ...], Call]] = {module: {} for module in modules}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(tuple(map(_leaf, args)), {key: _leaf(value) for key, value in kwargs.items()})
        calls[module].setdefault(call.signature(), call)

    args, kwargs = _as_arguments(example_inputs)
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        try:
            with torch.set_grad_enabled(model.training):
                model(*args, **kwargs)
        except Exception as error:
            message = f"example_inputs: the model can't be called with them: {type(error).__name__}: {error}"
            raise ValueError(message) from error
    return {module: list(found.values()) for module, found in calls.items()}


def _as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Buffers, the training flags and the random generators are afterwards what they were."""
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers() if not is_lazy(buffer)}
    training = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        with torch.no_grad():
            for buffer, saved in buffers.items():
                buffer.copy_(saved)
        for module, flag in training.items():
            module.training = flag


def forward_of(module: nn.Module, call: Call) -> Callable[[], Any]:
    """One call of the module's forward, hooks left out."""
    return lambda: type(module).forward(module, *call.args, **call.kwargs)


def step_of(module: nn.Module, call: Call) -> Callable[[], Any]:
    """One forward and the backward to everything that needs a gradient, `.grad` untouched."""
    forward = forward_of(module, call)
    wanted = [value for value in call.args if isinstance(value, Tensor) and value.requires_grad]
    wanted += [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not wanted:
        return forward
    with torch.enable_grad():
        gradients = [torch.ones_like(output) for output in _differentiable(forward())]

    def step() -> Any:
        with torch.enable_grad():
            outputs = _differentiable(forward())
            return torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True)

    return step


def _differentiable(outputs: Any) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]


def interleaved_ms(
    module: nn.Module,
    calls: list[Call],
    make: Callable[[nn.Module, Call], Callable[[], Any]],
    ways: list[Callable[[nn.Module], None]],
) -> list[float]:
    """Median time in milliseconds of the module's calls under each of the ways, which take turns.

    Args:
        module: the module.
        calls: its calls; their times are added up.
        make: what is timed, for one call.
        ways: each puts the module into one of the states to compare.
    """
    totals = [0.0] * len(ways)
    for call in calls:
        samples: list[list[float]] = [[] for _ in ways]
        for _ in range(ROUNDS):
            for way, found in zip(ways, samples, strict=True):
                way(module)
                found += _block(make(module, call), call.device())
        totals = [total + statistics.median(found) for total, found in zip(totals, samples, strict=True)]
    return totals


def _block(run: Callable[[], Any], device: torch.device | None) -> list[float]:
    run()
    first = _timed_ms(run, device)
    repeats = max(1, min(_MOST_CALLS_PER_ROUND, int(_SECONDS_PER_ROUND * 1e3 / max(first, 1e-6))))
    return [_timed_ms(run, device) for _ in range(repeats)]


def _timed_ms(run: Callable[[], Any], device: torch.device | None) -> float:
    start = time.perf_counter()
    run()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3
