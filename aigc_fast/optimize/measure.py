"""Times layers both ways in the calls that the model really makes."""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from aigc_fast.wording import told

ROUNDS = 5
_SECONDS_PER_ROUND = 0.02
_MOST_CALLS_PER_ROUND = 20
_HOOKS = {
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
}


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module, cut off from the graph that they came from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call of these arguments; those that are one tensor stay one."""
        leaves: dict[int, Tensor] = {}

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in leaves:
                leaves[id(value)] = value.detach().requires_grad_(value.requires_grad)
            return leaves[id(value)]

        return cls(*tree_map(leaf, (args, kwargs)))

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, and inside of them."""
        return _tensors_in((self.args, self.kwargs))

    def signature(self) -> tuple[Any, ...]:
        """What tells calls of different cost apart."""
        return tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad) for tensor in self.tensors())

    def device(self) -> torch.device | None:
        """The first tensor's device."""
        return next((tensor.device for tensor in self.tensors()), None)


def _tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def rehearsal(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of the model to try things on; where it cannot be copied the model itself, which is put back afterwards.

    The random generators of PyTorch, NumPy and Python are afterwards what they were.
    """
    stage = _copied(model)
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)), ExitStack() as stack:
            if stage is None:
                stage = stack.enter_context(_put_back(model))
            yield stage
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _copied(model: nn.Module) -> nn.Module | None:
    """A deep copy, if it can be made and is made of the same modules."""
    try:
        found = copy.deepcopy(model)
    except Exception:  # whatever a model holds: locks, files, tensors inside a graph
        return None
    same = [(name, type(module)) for name, module in model.named_modules()]
    return found if same == [(name, type(module)) for name, module in found.named_modules()] else None


@contextmanager
def _put_back(model: nn.Module) -> Iterator[nn.Module]:
    """The model, whose modules afterwards have the attributes, and these the elements, that they had."""
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    attributes = [value for *_, found in modules for value in found.values()]
    containers = [(value, copy.copy(value)) for value in attributes if isinstance(value, (dict, list, set))]
    tensors = {tensor: None for tensor in _tensors_in([attributes, list(model.parameters())]) if not is_lazy(tensor)}
    saved = [(tensor, tensor.detach().clone(), tensor.grad if tensor.is_leaf else None) for tensor in tensors]
    try:
        yield model
    finally:
        for module, cls, found in modules:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(found)
        for container, content in containers:
            _refill(container, content)
        with torch.no_grad():
            for tensor, elements, gradient in saved:
                if tensor.shape != elements.shape:
                    tensor.data = elements
                elif not torch.equal(tensor, elements):
                    tensor.copy_(elements)
                if tensor.is_leaf:
                    tensor.grad = gradient


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def captured_calls(model: nn.Module, modules: list[nn.Module], example_inputs: Any) -> dict[nn.Module, list[Call]]:
    """Runs the model once, on inputs of its own, and keeps each module's calls, one for each different signature.

    Raises:
        ValueError: when the model can't be called with `example_inputs`.
    """
    calls: dict[nn.Module, dict[tuple[Any, ...], Call]] = {module: {} for module in modules}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call.of(args, kwargs)
        calls[module].setdefault(call.signature(), call)

    args, kwargs = _as_arguments(_own(example_inputs))
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        try:
            with torch.set_grad_enabled(model.training):
                model(*args, **kwargs)
        except Exception as error:
            message = f"example_inputs: the model can't be called with them: {told(error)}"
            raise ValueError(message) from error
    return {module: list(found.values()) for module, found in calls.items()}


def _own(example_inputs: Any) -> Any:
    """The inputs, copied: a model may write to them."""
    copies: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if id(value) not in copies:
            copies[id(value)] = _copy_of(value)
        return copies[id(value)]

    return tree_map(copied, example_inputs)


def _copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever a model is called with
        return value


def _as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def silence(model: nn.Module) -> None:
    """Takes all hooks off: what is run to be timed is not a call of the model's."""
    for module in model.modules():
        for name in vars(module).keys() & _HOOKS:
            vars(module)[name] = type(vars(module)[name])()


def forward_of(module: nn.Module, call: Call) -> Callable[[], Any]:
    """One call of the module's forward."""
    if not getattr(module, "inplace", False):
        return lambda: type(module).forward(module, *call.args, **call.kwargs)

    def forward() -> Any:
        args, kwargs = tree_map(_writable, (call.args, call.kwargs))
        return type(module).forward(module, *args, **kwargs)

    return forward


def _writable(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def step_of(module: nn.Module, call: Call) -> Callable[[], Any]:
    """One forward and the backward to everything that needs a gradient, `.grad` untouched."""
    forward = forward_of(module, call)
    wanted = [tensor for tensor in (*call.tensors(), *module.parameters()) if tensor.requires_grad]
    with torch.enable_grad():
        outputs = _differentiable(forward())
    if not (wanted and outputs):
        return forward
    gradients = [torch.ones_like(output) for output in outputs]

    def step() -> Any:
        with torch.enable_grad():
            outputs = _differentiable(forward())
            return torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True)

    return step


def _differentiable(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in _tensors_in(outputs) if tensor.requires_grad]


def interleaved_ms(
    module: nn.Module,
    calls: Sequence[Call],
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
