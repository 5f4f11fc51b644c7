"""The public functions: the arguments of torch._VF's, padded and packed, over the op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.random.functional import dropout as drop
from aigc_fast.ops.recurrent import choice, cpu, reference
from aigc_fast.ops.recurrent.operators import RECURRENT
from aigc_fast.ops.recurrent.sizes import GRU, LSTM, RNN_RELU, RNN_TANH, WITH_CELLS, Options, params_of
from aigc_fast.runtime import native
from aigc_fast.runtime.autocast import autocast, has_autocast
from aigc_fast.runtime.backends import leave_to_pytorch
from aigc_fast.runtime.native import PLAIN
from aigc_fast.runtime.operator import is_compiling, kind_of_call
from aigc_fast.runtime.recording import is_recorded, is_symbolic, record
from aigc_fast.runtime.weights import AS_THEY_ARE

# Bound here, so that PyTorch's functions can be replaced by these.
PYTORCHS: dict[int, Callable[..., Any]] = {
    RNN_TANH: torch._VF.rnn_tanh,
    RNN_RELU: torch._VF.rnn_relu,
    LSTM: torch._VF.lstm,
    GRU: torch._VF.gru,
}
_PADDED = "input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first"
_PACKED = "data", "batch_sizes", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional"


def recur_known(
    input: Tensor, states: tuple[Tensor, ...], params: Sequence[Tensor], options: tuple[Any, ...], weights: int
) -> tuple[Tensor, ...] | None:
    """The output and the last states of a call like one before, whose arguments need no other look; else None."""
    if kind_of_call(input, *states, *params) != PLAIN:
        return None
    key = options, weights, native.level(), native.signature(input, None, *states, *params)
    plan = RECURRENT.choice.remembered(key)
    return plan and cpu.recur_at_once(plan, input, None, states, params)


def recur(
    mode: int,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    own: Callable[[], Any] | None = None,
    weights: int = AS_THEY_ARE,
    eps: float = 0.0,
) -> tuple[Tensor, ...]:
    """What torch._VF gives for a mode's arguments; of packed sequences where `batch_sizes` are given.

    Args:
        own: PyTorch's own call, where that is another than torch._VF's.
        eps: of a normalized LSTM, which PyTorch lacks: the reference stands for its own.
        weights: how weights are kept, by its code, for a call of float32 that wants no gradients and nothing else.
    """

    def pytorchs() -> tuple[Tensor, ...]:
        if own is not None:
            return own()
        if mode not in PYTORCHS:
            run = reference.recurrent
            return _by_layers(run, input, batch_sizes, states, params, options, False, dropout if drops else 0.0)
        first = (input,) if batch_sizes is None else (input, batch_sizes)
        last = (batch_first,) if batch_sizes is None else ()
        numbers = has_biases, num_layers, dropout, train, bidirectional
        return PYTORCHS[mode](*first, hx, params, *numbers, *last)

    options = Options(mode, num_layers, bool(bidirectional), bool(has_biases), bool(batch_first), eps)
    states = tuple(hx) if mode in WITH_CELLS else (hx,)
    drops = bool(dropout) and train and num_layers > 1
    if drops and not 0 <= dropout <= 1:
        raise RuntimeError(f"dropout={dropout}: expected a probability between 0 and 1")
    key = None
    # Without lent tensors the op is as fast, but knows no weights that are kept otherwise.
    if not drops and kind_of_call(input, batch_sizes, *states, *params, lent=weights == AS_THEY_ARE) == PLAIN:
        weights = weights if input.dtype == torch.float32 else AS_THEY_ARE
        key = options, weights, native.level(), native.signature(input, batch_sizes, *states, *params)
        plan = RECURRENT.choice.remembered(key)
        if plan is not None:
            return cpu.recur_at_once(plan, input, batch_sizes, states, params)
    cast = isinstance(input, Tensor) and has_autocast(input)
    # The dtype that autocast gives depends on PyTorch's kernel. A graph has eager mode's, but where gradients may be
    # wanted of oneDNN's LSTM, which AOTAutograd does not take.
    traceable = mode != LSTM or own is not None or not torch.is_grad_enabled()
    if is_recorded() or (cast and traceable and is_compiling()):
        return pytorchs()
    if cast and not choice.is_open():
        input, *tensors = autocast((input, *states, *params))
        states, params, cast = tensors[: len(states)], tensors[len(states) :], False
    misfit = choice.misfit(input, batch_sizes, states, params, options, cast)
    if misfit is not None:
        if own is not None:
            return own()
        raise RuntimeError(misfit)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (input, *states, *params))
    reason = choice.leave(input, batch_sizes, states, params, options, keep)
    if reason is not None:
        leave_to_pytorch(RECURRENT.name, reason)
        return pytorchs()
    if key is not None and input.is_cpu:
        plan = cpu.plan_of(input, batch_sizes, states, params, options, weights)
        RECURRENT.choice.remember(key, plan)
        return cpu.recur_at_once(plan, input, batch_sizes, states, params)
    if drops:
        return _by_layers(RECURRENT, input, batch_sizes, states, params, options, keep, dropout)
    found = RECURRENT(input, batch_sizes, list(states), list(params), *options, keep)
    return found[: 1 + len(states)]


def step_known(
    mode: int, input: Tensor, states: tuple[Tensor, ...], params: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """The states after a step of (B, I) like one before, whose arguments need no other look; else None."""
    if kind_of_call(input, *states, *params) != PLAIN:
        return None
    plan = RECURRENT.choice.remembered(_key_of_step(mode, input, states, params))
    return plan and cpu.step_at_once(plan, input, states, params)


def _key_of_step(mode: int, input: Tensor, states: tuple[Tensor, ...], params: Sequence[Tensor]) -> Any:
    return mode, native.level(), native.signature(input, *states, *params)


def step(
    mode: int, input: Tensor, states: tuple[Tensor, ...], params: Sequence[Tensor], has_biases: bool
) -> tuple[Tensor, ...] | None:
    """The states after a single step of (B, I), from states (B, size); None where PyTorch's cell had better make it."""
    data, hx = input[None], tuple(state[None] for state in states)
    numbers = has_biases, 1, 0.0, False, False, False
    found = recur(mode, data, None, hx if mode == LSTM else hx[0], params, *numbers, own=lambda: ())
    if not found:
        return None
    if kind_of_call(input, *states, *params) == PLAIN:
        options = Options(mode, 1, False, bool(has_biases), False)
        plan = cpu.plan_of(data, None, hx, params, options)
        RECURRENT.choice.remember(_key_of_step(mode, input, states, params), plan)
    return tuple(state[0] for state in found[1:])


def _by_layers(
    run: Callable[..., tuple[Tensor, ...]],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    options: Options,
    keep: bool,
    p: float,
) -> tuple[Tensor, ...]:
    """Layer by layer, each by `run`, with elements dropped of the output of all but the last."""
    of_layer, last = options._replace(layers=1), []
    for layer in range(options.layers):
        if layer and p:
            input = drop(input, p)
        parts = slice(layer * options.directions, (layer + 1) * options.directions)
        own_params = [param for part in params_of(params, options)[parts] for param in part]
        found = run(input, batch_sizes, [state[parts] for state in states], own_params, *of_layer, keep)
        input = found[0]
        last.append(found[1 : 1 + len(states)])
    return input, *(torch.cat(each) for each in zip(*last, strict=True))


def _called(function: Callable[..., Any], mode: int, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """A call of one of the two forms of a public function."""
    tensors = [arg for arg in (*args, *named.values()) if isinstance(arg, Tensor) or hasattr(arg, "__torch_function__")]
    if is_symbolic(*tensors):
        return record(function, *args, **named)
    is_packed = "batch_sizes" in named or (len(args) > 3 and isinstance(args[3], (list, tuple)))
    names = _PACKED if is_packed else _PADDED
    values = dict(zip(names, args, strict=False))
    if len(args) > len(names) or values.keys() & named.keys() or values.keys() | named.keys() != set(names):
        raise TypeError(f"{function.__name__}() takes ({', '.join(_PADDED)}) or ({', '.join(_PACKED)})")
    values.update(named)
    rest = [values[name] for name in names[3 if is_packed else 2 :]]
    if is_packed:
        return recur(mode, values["data"], values["batch_sizes"], values["hx"], *rest, False)
    return recur(mode, values["input"], None, values["hx"], *rest)


def rnn_tanh(*args: Any, **named: Any) -> tuple[Tensor, ...]:
    """Elman RNNs with tanh, with the arguments of `torch._VF.rnn_tanh`.

    On the CPU in float32, one native call runs all layers, directions and steps; with dropout between layers it is one
    call per layer, with a mask from `aigc_fast.functional.dropout`. The same holds for one bfloat16 sequence without
    gradients, where the processor multiplies bfloat16. Everything else runs on PyTorch's own function. With the backend
    "cuda" forced, up to 8 sequences run by one launch for each direction of each layer.

    Args:
        input: (T, B, I), or (B, T, I) with `batch_first`.
        hx: h_0, (layers * directions, B, H).
        params: for each layer and direction weight_ih, weight_hh and, with `has_biases`, bias_ih and bias_hh.
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as in torch.nn.RNN, positional or by name.
        data, batch_sizes: of a PackedSequence, in place of `input` and without `batch_first`: ``rnn_tanh(data,
            batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)``.

    Returns:
        (output, h_n), output (T, B, directions * H).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if the arguments have neither form.
    """
    return _called(rnn_tanh, RNN_TANH, args, named)


def rnn_relu(*args: Any, **named: Any) -> tuple[Tensor, ...]:
    """Elman RNNs with ReLU, with the arguments of `torch._VF.rnn_relu`.

    On the CPU in float32, one native call runs all layers, directions and steps; with dropout between layers it is one
    call per layer, with a mask from `aigc_fast.functional.dropout`. The same holds for one bfloat16 sequence without
    gradients, where the processor multiplies bfloat16. Everything else runs on PyTorch's own function. With the backend
    "cuda" forced, up to 8 sequences run by one launch for each direction of each layer.

    Args:
        input: (T, B, I), or (B, T, I) with `batch_first`.
        hx: h_0, (layers * directions, B, H).
        params: for each layer and direction weight_ih, weight_hh and, with `has_biases`, bias_ih and bias_hh.
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as in torch.nn.RNN, positional or by name.
        data, batch_sizes: of a PackedSequence, in place of `input` and without `batch_first`: ``rnn_relu(data,
            batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)``.

    Returns:
        (output, h_n), output (T, B, directions * H).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if the arguments have neither form.
    """
    return _called(rnn_relu, RNN_RELU, args, named)


def lstm(*args: Any, **named: Any) -> tuple[Tensor, ...]:
    """LSTMs, with the arguments of `torch._VF.lstm`.

    On the CPU in float32, one native call runs all layers, directions and steps; with dropout between layers it is one
    call per layer, with a mask from `aigc_fast.functional.dropout`. The same holds for one bfloat16 sequence without
    gradients, where the processor multiplies bfloat16. Everything else runs on PyTorch's own function. With the backend
    "cuda" forced, up to 8 sequences run by one launch for each direction of each layer.

    Args:
        input: (T, B, I), or (B, T, I) with `batch_first`.
        hx: (h_0, c_0), (layers * directions, B, size) and (layers * directions, B, H).
        params: for each layer and direction weight_ih, weight_hh and, with `has_biases`, bias_ih and bias_hh;
            with projections weight_hr too.
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as in torch.nn.LSTM, positional or by name.
        data, batch_sizes: of a PackedSequence, in place of `input` and without `batch_first`: ``lstm(data,
            batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)``.

    Returns:
        (output, h_n, c_n), output (T, B, directions * size).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if the arguments have neither form.
    """
    return _called(lstm, LSTM, args, named)


def gru(*args: Any, **named: Any) -> tuple[Tensor, ...]:
    """GRUs, with the arguments of `torch._VF.gru`.

    On the CPU in float32, one native call runs all layers, directions and steps; with dropout between layers it is one
    call per layer, with a mask from `aigc_fast.functional.dropout`. The same holds for one bfloat16 sequence without
    gradients, where the processor multiplies bfloat16. Everything else runs on PyTorch's own function. With the backend
    "cuda" forced, up to 8 sequences run by one launch for each direction of each layer.

    Args:
        input: (T, B, I), or (B, T, I) with `batch_first`.
        hx: h_0, (layers * directions, B, H).
        params: for each layer and direction weight_ih, weight_hh and, with `has_biases`, bias_ih and bias_hh.
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as in torch.nn.GRU, positional or by name.
        data, batch_sizes: of a PackedSequence, in place of `input` and without `batch_first`: ``gru(data,
            batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)``.

    Returns:
        (output, h_n), output (T, B, directions * H).

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if the arguments have neither form.
    """
    return _called(gru, GRU, args, named)
