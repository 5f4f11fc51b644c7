"""Convolution, transposed convolution and their weight gradient.

The three are the derivatives of one trilinear form of (large map, weight, small map): a convolution's input gradient is
a transposed convolution, the other way round, and both share the weight gradient. Each one's backward is made of the
other two, so every order of derivative runs on the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose import choice, cpu, cuda, reference
from aigc_fast.ops.conv_transpose.plan import Plan, make_plan, memory_format
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.activations import GRADIENTS_FROM_OUTPUT
from aigc_fast.runtime.backends import Choice, Runner
from aigc_fast.runtime.devices import Reason, lazily
from aigc_fast.runtime.operator import (
    LIBRARY,
    Operator,
    ReadOnce,
    functorch_level,
    hashable,
    in_force,
    is_compiling,
    is_plain,
)
from aigc_fast.runtime.precision import EXACT, factors_of, precision
from aigc_fast.runtime.sharding import Sharding

__all__ = ["conv", "conv_activation", "conv_transpose", "conv_transpose_activation", "conv_weight_gradient"]

Ints = Sequence[int]


def _conv_plan(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Plan:
    shape = None if bias is None else tuple(bias.shape)
    none = (0,) * len(stride)
    return make_plan(
        tuple(input.shape),
        tuple(weight.shape),
        shape,
        tuple(stride),
        tuple(padding),
        none,
        tuple(dilation),
        groups,
        False,
    )


def _conv_transpose_plan(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> Plan:
    shape = None if bias is None else tuple(bias.shape)
    sizes = (tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation))
    return make_plan(tuple(input.shape), tuple(weight.shape), shape, *sizes, groups, True)


def _check_alike(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(f"{name} has dtype {tensor.dtype}: expected input's {input.dtype}")
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name} is on {tensor.device}: expected input's device {input.device}")


def check(op: Operator, input: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> None:
    """Checks the arguments of `conv` or `conv_transpose`.

    Raises:
        RuntimeError: naming the argument that does not fit, what came and what was expected.
    """
    _check_alike(input, weight, bias)
    plan_of(op, input, weight, bias, *sizes)


def plan_of(op: Operator, input: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Plan:
    """The plan of one of the four forward ops' calls, without what follows the sizes."""
    transposed = op in (conv_transpose, conv_transpose_activation)
    return (_conv_transpose_plan if transposed else _conv_plan)(input, weight, bias, *sizes)


def _reference_for(function: Callable[..., Tensor], plan_of: Callable[..., Plan]) -> Callable[..., Any]:
    """What gives a call's way in PyTorch: `function`, or the same without padding where that is the safe way."""
    without_padding = reference.without_padding(function)

    def reference_for(first: Tensor, second: Tensor, *rest: Any, differentiable: bool = True) -> Callable[..., Tensor]:
        # Nothing is computed with symbolic sizes.
        computed = all(type(size) is int for size in (*first.shape, *second.shape))
        if not computed or not first.is_cpu or first.dtype == torch.float64:
            return function
        plan = plan_of(first, second, *rest)
        unsafe = plan.padding_garbles and (differentiable or plan.outside == 1)
        return without_padding if unsafe else function

    return reference_for


_triton_forward = lazily(f"{__package__}.triton", "prepare_forward")
_triton_weight_gradient = lazily(f"{__package__}.triton", "prepare_weight_gradient")


def _products_of(dtype: torch.dtype) -> str:
    """What a card's tensor cores multiply, or its other units."""
    exact = dtype != torch.float32 or factors_of(dtype) == EXACT
    return str(dtype).removeprefix("torch.") if exact else "tf32"


def _unsupported_on_a_card(library: Callable[..., Reason], *tensors: Tensor | None) -> Reason:
    reason = library(tensors[0].dtype, *tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    if reason is None and any(tensor.dtype != given[0].dtype for tensor in given):
        return f"dtypes {', '.join(str(tensor.dtype) for tensor in given)}: the kernels take the same for all arguments"
    if reason is None and any(tensor.numel() == 0 for tensor in given):
        return "an argument has no elements"
    return reason


class _Forward:
    """The backends of a forward op.

    Args:
        function: the op in plain PyTorch.
        plan_of: the plan of a call's tensors and sizes.
        activated: whether the op's last two arguments are an activation and its slope.
    """

    def __init__(self, function: Callable[..., Tensor], plan_of: Callable[..., Plan], activated: bool) -> None:
        self._function, self._plan_of, self._activated = function, plan_of, activated
        self._reference_for = _reference_for(function, self._plan)

    def _split(self, rest: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Sizes, and activation and slope where the op has them."""
        return (rest[:-2], rest[-2:]) if self._activated else (rest, ())

    def _plan(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Plan:
        return self._plan_of(input, weight, bias, *self._split(rest)[0])

    def reference(self, *args: Any) -> Tensor:
        return self._reference_for(*args)(*args)

    def allocate(self, input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return _formatted(input, weight, self._function)(input, weight, *rest)

    def _references(self, input: Tensor, weight: Tensor, *rest: Any) -> list[Callable[..., Tensor]]:
        """PyTorch's ways: one for values alone, and one that can be differentiated."""
        given = [self._reference_for(input, weight, *rest, differentiable=wanted) for wanted in (False, True)]
        return [_formatted(input, weight, function) for function in given]

    def _prepare_reference(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Runner:
        _check_alike(input, weight, bias)
        run, pytorchs = self._references(input, weight, bias, *rest)
        if cpu.unsupported((input, weight, bias)) is not None:
            return Runner(run, pytorchs)
        plan = self._plan(input, weight, bias, *rest)
        leave = 0 in plan.output_shape or choice.leave_gradients(input, weight, plan) is not None
        return Runner(run, pytorchs if leave else None)

    def _prepare_cpu(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Runner:
        plan = self._plan(input, weight, bias, *rest)
        fallback, pytorchs = self._references(input, weight, bias, *rest)
        run = cpu.prepare_forward(input, weight, bias, plan, fallback, *self._split(rest)[1])
        return Runner(run, None if choice.leave_gradients(input, weight, plan) is None else pytorchs)

    def _unsupported_on_cpu(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Reason:
        reason = cpu.unsupported((input, weight, bias))
        if reason is None and 0 in self._plan(input, weight, bias, *rest).output_shape:
            return "the output has no elements"
        return reason

    def _slower_on_cpu(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Reason:
        plan = self._plan(input, weight, bias, *rest)
        taken = cpu.forward_algorithm(input, weight, plan)
        return choice.forward_slower(input, weight, plan, cpu.KINDS.get(taken, "other"))

    def _leave(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Reason:
        return choice.leave_gradients(input, weight, self._plan(input, weight, bias, *rest))

    def _detail_of_cpu(self, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> str:
        taken = cpu.forward_algorithm(input, weight, self._plan(input, weight, bias, *rest))
        return f"{cpu.ALGORITHMS[taken]}; {native.level()}"

    def details(self) -> dict[str, Callable[..., str]]:
        """For each backend, what `explain` says of the kernel that it takes."""
        return {
            "cpu": self._detail_of_cpu,
            "cuda": lambda *args: "few output channels: all of a pixel's by one thread",
            "triton": lambda input, *rest: f"a product over the taps of each phase, in {_products_of(input.dtype)}",
        }

    def register(self, operator: Operator) -> None:
        """Registers all backends, the preferred one first."""
        registry = operator.choice
        registry.register(
            "cpu",
            _run_by(self._prepare_cpu),
            self._unsupported_on_cpu,
            self._slower_on_cpu,
            prepare=self._prepare_cpu,
            leave=self._leave,
        )
        self._register_on_a_card(registry, "cuda", devices.cuda, cuda.prepare_forward, cuda.does_not_suit)
        self._register_on_a_card(registry, "triton", devices.triton, _triton_forward, lambda plan: None)
        registry.register("reference", _run_by(self._prepare_reference), prepare=self._prepare_reference)

    def _register_on_a_card(
        self,
        registry: Choice,
        name: str,
        library: Callable[..., Reason],
        prepare_forward: Callable[..., Any],
        does_not_suit: Callable[[Plan], Reason],
    ) -> None:
        def unsupported(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Reason:
            reason = _unsupported_on_a_card(library, input, weight, bias)
            if reason is not None:
                return reason
            plan = self._plan(input, weight, bias, *rest)
            return "the output has no elements" if 0 in plan.output_shape else does_not_suit(plan)

        def prepare(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Runner:
            plan = self._plan(input, weight, bias, *rest)
            return Runner(prepare_forward(input, weight, bias, plan, *self._split(rest)[1]))

        registry.register(name, _run_by(prepare), unsupported, choice.slower_on_a_card, prepare)


def _formatted(input: Tensor, weight: Tensor, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with results in the memory format that compile and export are promised, whoever computes."""
    wanted = memory_format(input, weight)
    return lambda *args: function(*args).contiguous(memory_format=wanted)


def _run_by(prepare: Callable[..., Runner]) -> Callable[..., Tensor]:
    """What runs a call by preparing it each time."""
    return lambda *args: prepare(*args).run(*args)


def _signature(first: Tensor, second: Tensor, third: Tensor | None, *sizes: Any) -> Hashable:
    """See `Choice`."""
    return native.signature(first, second, third), native.arguments(*sizes), native.level(), precision()


def _flops(input: Ints, weight: Ints, *rest: Any, out_shape: Ints, **options: Any) -> int:
    return 2 * input[0] * prod(weight) * prod(out_shape[2:])


def _transposed_flops(input: Ints, weight: Ints, *rest: Any, **options: Any) -> int:
    return 2 * input[0] * prod(weight) * prod(input[2:])


def _weight_gradient_flops(large: Ints, small: Ints, *rest: Any, out_shape: Ints, **options: Any) -> int:
    return _flops(large, out_shape, out_shape=small)


def _forward_operator(
    name: str,
    schema: str,
    reference_function: Callable[..., Tensor],
    plan_of: Callable[..., Plan],
    flops: Callable[..., int],
    backward: Callable[..., Any],
    activated: bool = False,
) -> Operator:
    backends = _Forward(reference_function, plan_of, activated)
    operator = Operator(
        name,
        schema,
        reference=backends.reference,
        allocate=backends.allocate,
        setup_context=_save_with_output if activated else _save_input_and_weight,
        backward=_whole_in_graphs(_through_activation(backward) if activated else backward),
        signature=_signature,
        flops=flops,
        detail=backends.details(),
        sharding=Sharding([0]),
    )
    backends.register(operator)
    return operator


def _bias_gradient(gradient: Tensor) -> Tensor:
    return gradient.sum([d for d in range(gradient.dim()) if d != 1])


def _save_input_and_weight(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    input, weight, _, *sizes = inputs
    ctx.sizes = hashable(sizes)
    ctx.save_for_backward(input, weight)


def _save_with_output(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    input, weight, _, *sizes, ctx.activation, ctx.slope = inputs
    ctx.sizes = hashable(sizes)
    ctx.save_for_backward(input, weight, output)


def _output_padding(large: Tensor, small: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Ints:
    """The output_padding with which the transposed convolution of `small` has the size of `large`."""
    return tuple(
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, m, s, p, d, k in zip(large.shape[2:], small.shape[2:], stride, padding, dilation, kernel, strict=True)
    )


def _conv_backward(ctx: Any, gradient: Tensor, of_bias: Tensor | None = None) -> tuple[Any, ...]:
    input, weight, *_ = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.sizes
    kernel = weight.shape[2:]
    of_input = of_weight = None
    if ctx.needs_input_grad[0]:
        output_padding = _output_padding(input, gradient, kernel, stride, padding, dilation)
        of_input = conv_transpose(gradient, weight, None, stride, padding, output_padding, dilation, groups)
    if ctx.needs_input_grad[1]:
        of_weight = conv_weight_gradient(input, gradient, kernel, stride, padding, dilation, groups)
    if not ctx.needs_input_grad[2]:
        of_bias = None
    elif of_bias is None:
        of_bias = _bias_gradient(gradient)
    return of_input, of_weight, of_bias, None, None, None, None


def _conv_transpose_backward(ctx: Any, gradient: Tensor, of_bias: Tensor | None = None) -> tuple[Any, ...]:
    input, weight, *_ = ctx.saved_tensors
    stride, padding, output_padding, dilation, groups = ctx.sizes
    of_input = of_weight = None
    # An output_padding of a whole stride or more adds elements to the output that no input element reaches.
    surplus = [extra // step for extra, step in zip(output_padding, stride, strict=True)]
    if ctx.needs_input_grad[0]:
        of_input = conv(gradient, weight, None, stride, padding, dilation, groups)
        if any(surplus):
            of_input = of_input[(..., *(slice(0, size) for size in input.shape[2:]))]
    if ctx.needs_input_grad[1]:
        if any(surplus):
            input = torch.nn.functional.pad(input, [side for extra in reversed(surplus) for side in (0, extra)])
        of_weight = conv_weight_gradient(gradient, input, weight.shape[2:], stride, padding, dilation, groups)
    if not ctx.needs_input_grad[2]:
        of_bias = None
    elif of_bias is None:
        of_bias = _bias_gradient(gradient)
    return of_input, of_weight, of_bias, None, None, None, None, None


def _through_activation(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward of a convolution that ends in an activation, from that of the convolution."""

    def backward_of_both(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        ctx = ReadOnce(ctx)
        *_, output = ctx.saved_tensors
        ending = ctx.activation, ctx.slope
        if is_plain(gradient, output) and (found := cpu.through_activation(gradient, output, *ending)):
            return *backward(ctx, *found), None, None
        inner = GRADIENTS_FROM_OUTPUT[ctx.activation](gradient, output, ctx.slope)
        return *backward(ctx, inner), None, None

    return backward_of_both


def _whole_in_graphs(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward of a convolution, which a compiled graph takes as one op: Inductor's loops over the masks of
    activations and for the sums of a bias take many times PyTorch's, and ours reads the activation off the output."""

    def run(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        # With grad mode enabled, the gradients themselves may be differentiated.
        if not is_compiling() or torch.is_grad_enabled() or functorch_level() is not None:
            return backward(ctx, gradient)
        ctx = ReadOnce(ctx)
        input, weight, *output = ctx.saved_tensors
        stride, padding, *output_padding, dilation, groups = ctx.sizes
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aigc_fast.conv_gradients(
            gradient,
            input,
            weight,
            output[0] if output else None,
            stride,
            padding,
            output_padding[0] if output_padding else None,
            dilation,
            groups,
            *((ctx.activation, ctx.slope) if output else ("none", 0.0)),
            wanted,
            precision=in_force().precision,
        )
        given = (of if asked else None for of, asked in zip(found, wanted, strict=True))
        return *given, *(None,) * (len(ctx.needs_input_grad) - 3)

    return run


@dataclass
class _Held:
    """What a backward reads of its context."""

    saved_tensors: list[Tensor]
    sizes: tuple[Any, ...]
    activation: str
    slope: float
    needs_input_grad: list[bool]


def _gradients(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints | None,
    dilation: Ints,
    groups: int,
    activation: str,
    slope: float,
    wanted: list[bool],
    *,
    precision: str | None = None,
) -> tuple[Tensor, ...]:
    """The gradients to input, weight and bias; without elements where they are not wanted."""
    transposed = output_padding is not None
    sizes = (stride, padding, output_padding, dilation) if transposed else (stride, padding, dilation)
    tensors = [input, weight] if output is None else [input, weight, output]
    held = _Held(tensors, (*hashable(sizes), groups), activation, slope, wanted)
    backward = _conv_transpose_backward if transposed else _conv_backward
    if output is not None:
        backward = _through_activation(backward)
    found = in_force(precision).run(backward, held, gradient)
    return tuple(gradient.new_empty(0) if of is None else of for of in found[:3])


_TENSORS = "(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
_PRECISION = ", *, str? precision=None) -> Tensor"
_ACTIVATION = ", str activation, float slope" + _PRECISION

conv = _forward_operator(
    "conv",
    _TENSORS + "SymInt[] dilation, SymInt groups" + _PRECISION,
    reference.conv,
    _conv_plan,
    _flops,
    _conv_backward,
)
conv_transpose = _forward_operator(
    "conv_transpose",
    _TENSORS + "SymInt[] output_padding, SymInt[] dilation, SymInt groups" + _PRECISION,
    reference.conv_transpose,
    _conv_transpose_plan,
    _transposed_flops,
    _conv_transpose_backward,
)
conv_activation = _forward_operator(
    "conv_activation",
    _TENSORS + "SymInt[] dilation, SymInt groups" + _ACTIVATION,
    reference.conv_activation,
    _conv_plan,
    _flops,
    _conv_backward,
    activated=True,
)
conv_transpose_activation = _forward_operator(
    "conv_transpose_activation",
    _TENSORS + "SymInt[] output_padding, SymInt[] dilation, SymInt groups" + _ACTIVATION,
    reference.conv_transpose_activation,
    _conv_transpose_plan,
    _transposed_flops,
    _conv_transpose_backward,
    activated=True,
)

LIBRARY.define(
    "conv_gradients(Tensor gradient, Tensor input, Tensor weight, Tensor? output, SymInt[] stride, SymInt[] padding, "
    "SymInt[]? output_padding, SymInt[] dilation, SymInt groups, str activation, float slope, bool[] wanted, *, "
    "str? precision=None) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.impl("conv_gradients", _gradients, "CompositeExplicitAutograd")
torch.library.register_fake("aigc_fast::conv_gradients", _gradients, lib=LIBRARY)


def _save_maps(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    large, small, _, *sizes = inputs
    ctx.sizes = hashable(sizes)
    ctx.save_for_backward(large, small)


def _conv_weight_gradient_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    large, small = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.sizes
    of_large = of_small = None
    if ctx.needs_input_grad[0]:
        output_padding = _output_padding(large, small, gradient.shape[2:], stride, padding, dilation)
        of_large = conv_transpose(small, gradient, None, stride, padding, output_padding, dilation, groups)
    if ctx.needs_input_grad[1]:
        of_small = conv(large, gradient, None, stride, padding, dilation, groups)
    return of_large, of_small, None, None, None, None, None


def _weight_gradient_plan(
    large: Tensor,
    small: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> tuple[Plan, tuple[int, ...]]:
    shape = (small.shape[1], large.shape[1] // groups, *kernel_size)
    none = (0,) * len(stride)
    sizes = (tuple(stride), tuple(padding), none, tuple(dilation))
    plan = make_plan(tuple(large.shape), shape, None, *sizes, groups, False)
    if plan.output_shape != tuple(small.shape):
        raise RuntimeError(f"small has shape {tuple(small.shape)}: expected {plan.output_shape}")
    return plan, shape


def _prepare_weight_gradient(large: Tensor, small: Tensor, *sizes: Any) -> Runner:
    return Runner(cpu.prepare_weight_gradient(large, small, *_weight_gradient_plan(large, small, *sizes)))


def _weight_gradient_slower(large: Tensor, small: Tensor, *sizes: Any) -> Reason:
    plan, _ = _weight_gradient_plan(large, small, *sizes)
    return choice.weight_gradient_slower(large, small, plan, cpu.gradient_algorithm(large, small, plan))


_weight_gradient_reference_for = _reference_for(
    reference.conv_weight_gradient, lambda *args: _weight_gradient_plan(*args)[0]
)


def _reference_weight_gradient(*args: Any) -> Tensor:
    return _weight_gradient_reference_for(*args)(*args).contiguous()


def _prepare_reference_weight_gradient(*args: Any) -> Runner:
    function = _weight_gradient_reference_for(*args)
    return Runner(lambda *given: function(*given).contiguous())


def _fake_weight_gradient(*args: Any) -> Tensor:
    return reference.conv_weight_gradient(*args).contiguous()


conv_weight_gradient = Operator(
    "conv_weight_gradient",
    "(Tensor large, Tensor small, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups" + _PRECISION,
    reference=_reference_weight_gradient,
    allocate=_fake_weight_gradient,
    setup_context=_save_maps,
    backward=_conv_weight_gradient_backward,
    signature=lambda large, small, *sizes: _signature(large, small, None, *sizes),
    flops=_weight_gradient_flops,
)
conv_weight_gradient.choice.register(
    "cpu",
    _run_by(_prepare_weight_gradient),
    lambda large, small, *sizes: cpu.unsupported((large, small)),
    _weight_gradient_slower,
    _prepare_weight_gradient,
)


def _prepare_triton_weight_gradient(large: Tensor, small: Tensor, *sizes: Any) -> Runner:
    return Runner(_triton_weight_gradient(large, small, *_weight_gradient_plan(large, small, *sizes)))


conv_weight_gradient.choice.register(
    "triton",
    _run_by(_prepare_triton_weight_gradient),
    lambda large, small, *sizes: _unsupported_on_a_card(devices.triton, large, small),
    choice.slower_on_a_card,
    _prepare_triton_weight_gradient,
)
conv_weight_gradient.choice.register(
    "reference", _reference_weight_gradient, prepare=_prepare_reference_weight_gradient
)
