"""The native kernels of csrc/cpu/recurrent.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.linear.products import multiply
from aigc_fast.ops.recurrent.gradients import fill_normalized, fill_params
from aigc_fast.ops.recurrent.limits import LEAST_STEP_WORK, WAIT_WORK, WAVE_SHARE, WAVE_STEPS
from aigc_fast.ops.recurrent.packing import packing, packing_of_head
from aigc_fast.ops.recurrent.sizes import (
    LAYER_NORM_LSTM,
    Drawing,
    Kept,
    Options,
    Sizes,
    by_steps,
    counts_of,
    kept_of,
    params_of,
    sizes_of,
)
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32
from aigc_fast.runtime.kept import MANY_USES, Packing
from aigc_fast.runtime.memory import LEAST_REUSED, placed
from aigc_fast.runtime.weights import AS_THEY_ARE


class Plan(NamedTuple):
    """What follows from the sizes, strides and dtypes of a call.

    Attributes:
        output: the output's shape.
        is_large: whether the output is worth huge pages.
        packings: of the two weights of each direction of each layer, with their places among the parameters; None of
            those that every call packs.
        dense: whether the kernel takes all tensors as they lie.
        weights: how the two weights are kept, by its code.
        numbers: the kernel's last ones but for the limits.
    """

    options: Options
    sizes: Sizes
    output: tuple[int, ...]
    is_large: bool
    packings: tuple[tuple[int, Packing | None], ...]
    dense: bool
    weights: int
    numbers: tuple[Any, ...]


def unsupported(input: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cpu(input, input.dtype, UP_TO_FLOAT32)


def takes_pairs(input: Tensor, sizes: Sizes) -> bool:
    """Whether this level's kernel has products of bfloat16 for a call of it that wants no gradients."""
    even = input.shape[-1] % 2 == 0 and sizes.size % 2 == 0
    return even and not sizes.projected and bool(native.kernels().recurrent_takes_pairs())


def detail(
    input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor], *numbers: Any
) -> str | None:
    """How the kernel multiplies what is not float32."""
    *rest, keep = numbers
    if input.dtype == torch.float32:
        return None
    sizes = sizes_of(input, batch_sizes, states, Options(*rest))
    return "products of bfloat16" if _is_taken(input, sizes, keep) else "computed in float32"


def _is_taken(input: Tensor, sizes: Sizes, keep: bool) -> bool:
    """Whether the kernel takes such tensors as they are; others are widened to float32."""
    return input.dtype == torch.float32 or (input.dtype == torch.bfloat16 and not keep and takes_pairs(input, sizes))


def _in_float32(fill: Callable[..., bool], results: Sequence[Tensor], *args: Any) -> bool:
    """Fills results of other dtypes by what takes float32."""

    def widened(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [widened(item) for item in value]
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    found = [torch.empty_like(result, dtype=torch.float32) for result in results]
    fill(found, *map(widened, args))
    for result, values in zip(results, found, strict=True):
        result.copy_(values)
    return True


def _dense_rows(tensor: Tensor) -> Tensor:
    """The tensor with contiguous rows that begin where pairs of bfloat16 may."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        return tensor.contiguous()
    if tensor.dtype == torch.float32:
        return tensor
    odd = tensor.data_ptr() % 4 or any(stride % 2 for stride in tensor.stride()[:-1])
    return tensor.clone(memory_format=torch.contiguous_format) if odd else tensor


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    if tensors[0].dtype != torch.float32:
        return [_dense_rows(tensor.contiguous()) for tensor in tensors]
    return [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]


def plan_of(
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    options: Options,
    weights: int = AS_THEY_ARE,
) -> Plan:
    """The plan of this call, and of all others of its signature on this level."""
    sizes = sizes_of(input, batch_sizes, states, options)
    # A digest of some cache lines is cheap compared with one step, one of whole weights compared with many.
    uses = MANY_USES if sizes.rows >= MANY_USES else 1
    packings = _packings(params, options, uses, weights)
    dense = input.dtype == torch.float32 and (input.stride(-1) == 1 or input.shape[-1] == 1)
    dense = dense and all(tensor.is_contiguous() for tensor in (*states, *params))
    output = *input.shape[:-1], options.directions * sizes.size
    is_large = math.prod(output) * input.element_size() >= LEAST_REUSED
    of_sizes = sizes.hidden, sizes.projected
    numbers = options.mode, options.layers, options.directions, *of_sizes, options.has_biases, options.eps
    return Plan(options, sizes, output, is_large, packings, dense, weights, numbers)


def _packings(
    params: Sequence[Tensor], options: Options, uses: int, weights: int
) -> tuple[tuple[int, Packing | None], ...]:
    level, each = native.level(), len(params) // options.parts
    places = [part * each + i for part in range(options.parts) for i in (0, 1)]
    return tuple(
        (
            place,
            packing(level, options.mode, params[place].dtype, *params[place].shape, uses, weights)
            if params[place].is_contiguous()
            else None,
        )
        for place in places
    )


def _kept(packings: Sequence[tuple[int, Packing | None]], params: Sequence[Tensor]) -> list[Tensor | None]:
    """What is kept of the weights, which must live until the kernel has read it."""
    return [one and one.kept(params[place]) for place, one in packings]


def _addresses(packed: Sequence[Tensor | None]) -> list[int]:
    return [0 if one is None else one.data_ptr() for one in packed]


def _run(
    plan: Plan,
    output: Tensor,
    last: Sequence[Tensor],
    kept: Sequence[Tensor | None],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
) -> None:
    options, sizes = plan.options, plan.sizes
    packed = _kept(plan.packings, params)
    if not plan.dense:
        input, states, params = _dense_rows(input), _contiguous(states), _contiguous(params)
    native.kernels().recurrent(
        input,
        counts_of(batch_sizes, sizes),
        batch_sizes is not None,
        options.batch_first,
        sizes.steps,
        sizes.batch,
        states,
        params,
        _addresses(packed),
        plan.weights,
        [output, *last],
        kept,
        *plan.numbers,
        LEAST_STEP_WORK,
        WAIT_WORK,
        WAVE_STEPS,
        WAVE_SHARE,
    )


def _like(states: Sequence[Tensor], dense: bool) -> list[Tensor]:
    """Contiguous results of the states' shapes; `dense`: whether these are contiguous, which takes less asking."""
    if dense:
        return [torch.empty_like(state) for state in states]
    return [torch.empty_like(state, memory_format=torch.contiguous_format) for state in states]


def recur_at_once(
    plan: Plan, input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The output and the last states of a plain call whose plan is known."""
    output = input.new_empty(plan.output)
    last = _like(states, plan.dense)
    if plan.is_large:
        placed(output)
    _run(plan, output, last, [], input, batch_sizes, states, params)
    return output, *last


def step_at_once(plan: Plan, input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The states after a step of (B, I), of a plain call whose plan, that of one step, is known."""
    found = _like(states, plan.dense)
    _run(plan, found[0], found, [], input, None, states, params)
    return tuple(found)


def recurrent(
    results: Sequence[Tensor],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    *numbers: Any,
) -> bool:
    """Fills the output, the last states, and what backward reads."""
    *rest, keep = numbers
    plan = plan_of(input, batch_sizes, states, params, Options(*rest))
    if not _is_taken(input, plan.sizes, keep):
        return _in_float32(recurrent, results, input, batch_sizes, states, params, *numbers)
    output, *last, kept = results
    parts = kept_of(kept, plan.sizes, plan.options) if keep else None
    _run(
        plan,
        output,
        last,
        [] if parts is None else [*_pairs(parts.gates, parts.cells), *parts.outputs],
        input,
        batch_sizes,
        states,
        params,
    )
    return True


def sample_unsupported(asked: Drawing) -> Reason:
    """Why this backend cannot draw from such tensors, or None."""
    for tensor in (asked.embedding, *asked.states, *asked.params, *asked.head):
        reason = devices.cpu(tensor, tensor.dtype, (torch.float32,))
        if reason is not None:
            return reason
    return None


def recurrent_sample(asked: Drawing) -> tuple[Tensor, ...]:
    """The tokens that are drawn, from the first that cannot be on -1, and the last states."""
    options, params, head = asked.options, asked.params, _contiguous(asked.head)
    sizes = sizes_of(asked.embedding[None, :1], None, asked.states, options)
    uses = MANY_USES if len(asked.tokens) + asked.length >= MANY_USES else 1
    packed = _kept(_packings(params, options, uses, asked.weights), params)
    compact = asked.weights != AS_THEY_ARE and asked.head[0].is_contiguous()
    of_head = packing_of_head(native.level(), *head[0].shape, uses, asked.weights) if compact else None
    packed.append(of_head and of_head.kept(head[0]))
    ids = asked.tokens.new_empty(asked.length)
    last = [state.new_empty(state.shape) for state in asked.states]
    drawn = native.kernels().recurrent_sample(
        asked.tokens.contiguous(),
        _contiguous(asked.states),
        asked.embedding.contiguous(),
        _contiguous(params),
        _addresses(packed),
        asked.weights,
        (*head, None)[:2],
        asked.key.data_ptr(),
        asked.position,
        asked.length,
        asked.temperature,
        asked.top_k,
        asked.top_p,
        [ids, *last],
        asked.mode,
        asked.layers,
        sizes.hidden,
        sizes.projected,
        asked.has_biases,
        asked.eps,
        LEAST_STEP_WORK,
    )
    ids[drawn:] = -1
    return ids, *last


def _pairs(gates: Sequence[Tensor], cells: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [tensor for pair in zip(gates, cells, strict=True) for tensor in pair]


def backward_unsupported(grads: Sequence[Tensor], input: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return unsupported(input)


class _Backward(NamedTuple):
    """What the layers' backward has in common: the call's, and the gradients that it fills."""

    options: Options
    sizes: Sizes
    counts: list[int]
    is_packed: bool
    states: Sequence[Tensor]
    params: Sequence[Tensor]
    kept: Kept
    to_states: Sequence[Tensor]
    to_params: list[Sequence[Tensor]]


def recurrent_backward(
    results: Sequence[Tensor],
    grads: Sequence[Tensor],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    output: Tensor,
    kept: Tensor,
    *numbers: Any,
) -> bool:
    """Fills the gradients to the input, unless it is empty, the states and the parameters."""
    if input.dtype != torch.float32:
        given = grads, input, batch_sizes, states, params, output, kept
        return _in_float32(recurrent_backward, results, *given, *numbers)
    *rest, wants_input = numbers
    options = Options(*rest)
    sizes = sizes_of(input, batch_sizes, states, options)
    to_input, *to_rest = results
    to_states, to_params = to_rest[: len(states)], params_of(to_rest[len(states) :], options)
    for to_state, grad in zip(to_states, grads[1:], strict=True):
        to_state.copy_(grad)
    call = _Backward(
        options,
        sizes,
        counts_of(batch_sizes, sizes),
        batch_sizes is not None,
        _contiguous(states),
        _contiguous(params),
        kept_of(kept.detach(), sizes, options),
        to_states,
        to_params,
    )
    grad, output = (_dense_rows(by_steps(tensor, batch_sizes, options)).detach() for tensor in (grads[0], output))
    rows = by_steps(input.detach(), batch_sizes, options).reshape(sizes.rows, input.shape[-1])
    inputs = [rows, *call.kept.outputs]
    for layer in reversed(range(options.layers)):
        grad = _differentiate(call, layer, grad, output, inputs[layer], layer > 0 or wants_input)
        output = inputs[layer]
    if wants_input:
        to_steps = by_steps(to_input, batch_sizes, options)
        to_steps.copy_(grad.view(to_steps.shape))
    return True


def _differentiate(
    call: _Backward, layer: int, grad: Tensor, output: Tensor, input: Tensor, wants_input: bool
) -> Tensor | None:
    """Fills the gradients to a layer's states and parameters; those to its input (rows, size), where they are wanted.

    Args:
        call: the call's.
        layer: its number.
        grad: of the layer's output, as `output` has its rows.
        output: the layer's.
        input: (rows, size).
        wants_input: whether the gradients to the input are wanted.
    """
    options, sizes = call.options, call.sizes
    own = slice(layer * options.directions, (layer + 1) * options.directions)
    parts = range(options.parts)[own]
    work = [_workspace(call, part) for part in parts]
    native.kernels().recurrent_backward(
        grad,
        output,
        call.counts,
        call.is_packed,
        sizes.steps,
        sizes.batch,
        call.states,
        call.params,
        _pairs(call.kept.gates[own], call.kept.cells[own]),
        [tensor for tensors in work for tensor in tensors],
        layer,
        options.mode,
        options.layers,
        options.directions,
        sizes.hidden,
        sizes.projected,
        options.has_biases,
        options.eps,
        LEAST_STEP_WORK,
    )
    to_input = None
    of_parts = params_of(call.params, options)
    for part, (to_gates, before, _, _, to_shown, shown, to_normalized) in zip(parts, work, strict=True):
        to_sums = to_gates.flatten(1)
        if to_normalized is not None:
            to_cells = to_normalized, call.kept.cells[part]
            given = to_sums, call.kept.gates[part].flatten(1), *to_cells, input, before
            to_sums = fill_normalized(call.to_params[part], of_parts[part], *given, options.eps)
        else:
            fill_params(call.to_params[part], to_sums, input, before, options)
        if shown is not None:
            multiply(to_shown.t(), shown, call.to_params[part][-1])
        if wants_input:
            weight = of_parts[part][0]
            product = multiply(to_sums[:, : weight.shape[0]], weight, input.new_empty(input.shape))
            to_input = product if to_input is None else to_input.add_(product)
    return to_input


def _workspace(call: _Backward, part: int) -> tuple[Tensor | None, ...]:
    """What the kernel fills of a direction of a layer."""
    sizes, like = call.sizes, call.kept.gates[part]
    of_projection = ((sizes.rows, sizes.size), (sizes.rows, sizes.hidden)) if sizes.projected else (None, None)
    to_hidden, *to_cells = (state[part] for state in call.to_states)
    return (
        torch.empty_like(like),
        like.new_empty(sizes.rows, sizes.size),
        to_hidden,
        to_cells[0] if to_cells else None,
        *(shape and like.new_empty(shape) for shape in of_projection),
        like.new_empty(sizes.rows, sizes.hidden) if call.options.mode == LAYER_NORM_LSTM else None,
    )
