"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.ops.examples import Call, Example, Examples, Form


def _form(gates: int, states: int, input: tuple[int, int, int], hidden: int, layers: int, batch_first: bool) -> Form:
    batch = input[0 if batch_first else 1]
    layer = (gates * hidden, hidden), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)

    def call(input: Tensor, *tensors: Tensor) -> Call:
        rows = input.shape[0 if batch_first else 1]
        starts, params = [start[:, :rows] for start in tensors[:states]], list(tensors[states:])
        hx = starts[0] if states == 1 else starts
        return (input, hx, params, True, layers, 0.0, False, False, batch_first), {}

    return Form((input, *[(layers, batch, hidden)] * states, *layer * layers), call)


def _example(gates: int, states: int = 1) -> Example:
    return Example(_form(gates, states, (16, 2, 64), 64, 1, False), _form(gates, states, (3, 5, 4), 4, 2, True))


EXAMPLES: Examples = {
    "rnn_tanh": _example(1),
    "rnn_relu": _example(1),
    "lstm": _example(4, 2),
    "gru": _example(3),
}
