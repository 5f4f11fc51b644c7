"""Group and layer norms, each with the activation that follows, and their gradients.

Backward computes mean and deviation again: a group that it reads twice in any case stays in the caches meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import CHANNELS_LAST, is_channels_last
from aigc_fast.ops.norm import choice, cpu, reference
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import Runner
from aigc_fast.runtime.derivatives import own_variable
from aigc_fast.runtime.operator import Operator, hashable

__all__ = ["GROUP_NORM", "GROUP_NORM_BACKWARD", "LAYER_NORM", "LAYER_NORM_BACKWARD"]


def _format_of_groups(input: Tensor) -> torch.memory_format:
    return CHANNELS_LAST[input.dim()] if is_channels_last(input) else torch.contiguous_format


def _format_of_rows(input: Tensor) -> torch.memory_format:
    return torch.contiguous_format


def _empty(format_of: Callable[[Tensor], torch.memory_format]) -> Callable[..., Tensor]:
    return lambda input, *rest: torch.empty_like(input, memory_format=format_of(input))


def _empty_gradients(format_of: Callable[[Tensor], torch.memory_format]) -> Callable[..., tuple[Tensor, ...]]:
    def empty(
        grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
    ) -> tuple[Tensor, ...]:
        of_input = torch.empty_like(input, memory_format=format_of(input))
        return of_input, *(
            input.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for tensor in (weight, bias)
        )

    return empty


def _setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    *tensors, sizes, ctx.eps, ctx.activation, ctx.slope = inputs
    ctx.sizes = hashable((sizes,))[0]
    ctx.save_for_backward(*tensors)


def _backward_by(backward: Operator) -> Callable[..., tuple[Any, ...]]:
    def run(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        found = backward(grad, *tensors, ctx.sizes, ctx.eps, ctx.activation, ctx.slope)
        of_tensors = (None if tensor is None else of for tensor, of in zip(tensors, found, strict=True))
        return *of_tensors, None, None, None, None

    return run


def _double_backward_of(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Any, ...]]:
    def run(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        saved, keep_graph = ctx.saved_tensors, torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [None if tensor is None else own_variable(tensor, keep_graph) for tensor in saved]
            first = function(*inputs, ctx.sizes, ctx.eps, ctx.activation, ctx.slope)
            pairs = [(of, up) for of, up in zip(first, upstream, strict=True) if of.requires_grad and up is not None]
            outputs, gradients = zip(*pairs, strict=True)
            wanted = [tensor for tensor in inputs if tensor is not None]
            found = torch.autograd.grad(outputs, wanted, gradients, create_graph=keep_graph, allow_unused=True)
        each = iter(found)
        return *(None if tensor is None else next(each) for tensor in inputs), None, None, None, None

    return run


def _signature(*args: Any) -> Hashable:
    """See `Choice`."""
    *tensors, sizes, eps, activation, slope = args
    numbers = native.arguments(*hashable((sizes, eps, activation, slope)))
    return native.signature(*tensors), numbers, native.level(), torch.get_num_threads()


def _operators(
    name: str,
    sizes: str,
    function: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, ...]],
    format_of: Callable[[Tensor], torch.memory_format],
    slower: Callable[..., str | None],
    leave: Callable[..., str | None],
) -> tuple[Operator, Operator]:
    """The op of a norm and its gradient's."""
    arguments = f"Tensor input, Tensor? weight, Tensor? bias, {sizes}, float eps, str activation, float slope"
    of_gradient = Operator(
        f"{name}_backward",
        f"(Tensor grad, {arguments}) -> (Tensor, Tensor, Tensor)",
        reference=backward,
        allocate=_empty_gradients(format_of),
        setup_context=_setup,
        backward=_double_backward_of(backward),
    )
    of_gradient.register("cpu", cpu.filler(f"{name}_backward"), lambda grad, *args: cpu.unsupported(*args[:3]))
    op = Operator(
        name,
        f"({arguments}) -> Tensor",
        reference=function,
        allocate=_empty(format_of),
        setup_context=_setup,
        backward=_backward_by(of_gradient),
        signature=_signature,
    )
    run = op.runs["cpu"] = op.filled_by(cpu.filler(name))

    def pytorchs_for(input: Tensor) -> Callable[..., Tensor]:
        wanted = format_of(input)
        return lambda *args: function(*args).contiguous(memory_format=wanted)

    def prepare(input: Tensor, *rest: Any) -> Runner:
        return Runner(run, None if leave(input, *rest) is None else pytorchs_for(input))

    def prepare_reference(input: Tensor, *rest: Any) -> Runner:
        pytorchs = pytorchs_for(input)
        return Runner(pytorchs, pytorchs)

    op.choice.register("cpu", run, lambda *args: cpu.unsupported(*args[:3]), slower, prepare, leave)
    op.choice.register("reference", op.run_reference, prepare=prepare_reference)
    return op, of_gradient


GROUP_NORM, GROUP_NORM_BACKWARD = _operators(
    "group_norm",
    "SymInt groups",
    reference.group_norm,
    reference.group_norm_backward,
    _format_of_groups,
    choice.group_slower,
    choice.leave_groups,
)
LAYER_NORM, LAYER_NORM_BACKWARD = _operators(
    "layer_norm",
    "SymInt[] normalized_shape",
    reference.layer_norm,
    reference.layer_norm_backward,
    _format_of_rows,
    choice.layer_slower,
    choice.leave_rows,
)
