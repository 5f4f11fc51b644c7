"""Typical calls: what `explain` and `doctor` show, and tests go through."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aigc_fast.ops.examples import Call, Examples


def _layer(gates: int, hidden: int = 64, states: int = 1) -> Callable[[], Call]:
    def call() -> Call:
        start = [torch.zeros(1, 2, hidden) for _ in range(states)]
        shapes = (gates * hidden, hidden), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)
        params = [torch.zeros(shape) for shape in shapes]
        hx = start[0] if states == 1 else start
        return (torch.zeros(16, 2, hidden), hx, params, True, 1, 0.0, False, False, False), {}

    return call


EXAMPLES: Examples = {
    "rnn_tanh": _layer(1),
    "rnn_relu": _layer(1),
    "lstm": _layer(4, states=2),
    "gru": _layer(3),
}
