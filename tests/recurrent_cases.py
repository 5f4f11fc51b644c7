"""Shapes of recurrent networks, shared by the tests and by bench/."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CELL_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}


@dataclass(frozen=True)
class Recurrent:
    """A network and a batch of sequences.

    Attributes:
        counts: the rows of each step, of packed sequences; None of padded ones.
    """

    mode: str
    inputs: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    projected: int = 0
    steps: int = 6
    batch: int = 3
    counts: tuple[int, ...] | None = None

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The input, the states, then the parameters."""
        gates, directions, size = (
            CELL_GATES[self.mode] * self.hidden,
            1 + self.bidirectional,
            self.projected or self.hidden,
        )
        shape = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        input = torch.randn(*((sum(self.counts),) if self.counts else shape), self.inputs)
        states = [torch.randn(self.layers * directions, self.batch, size)]
        if self.mode == "LSTM":
            states.append(torch.randn(self.layers * directions, self.batch, self.hidden))
        shapes: list[tuple[int, ...]] = []
        for layer in range(self.layers):
            depth = directions * size if layer else self.inputs
            part = [(gates, depth), (gates, size), *[(gates,)] * (2 * self.bias)]
            shapes += (part + [(size, self.hidden)] * bool(self.projected)) * directions
        params = [torch.randn(shape) / (self.inputs + self.hidden) ** 0.5 for shape in shapes]
        return [tensor.to(dtype) for tensor in (input, *states, *params)]

    @property
    def multiply_adds(self) -> int:
        """Of all steps, with no more than one projection of a size."""
        rows, directions = sum(self.counts) if self.counts else self.steps * self.batch, 1 + self.bidirectional
        depth = max(self.inputs, directions * self.hidden) + self.hidden
        return rows * directions * self.layers * CELL_GATES[self.mode] * self.hidden * depth

    def network(self, home: Any) -> Callable[..., tuple[Tensor, ...]]:
        """The function as one of tensors alone."""
        function, states = getattr(home, self.mode.lower()), 2 if self.mode == "LSTM" else 1
        numbers = self.bias, self.layers, 0.0, False, self.bidirectional

        def run(input: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            hx, params = tensors[:states], list(tensors[states:])
            hx = hx if states == 2 else hx[0]
            if self.counts:
                return function(input, torch.tensor(self.counts), hx, params, *numbers)
            return function(input, hx, params, *numbers, self.batch_first)

        return run

    def __str__(self) -> str:
        flags = (("bi", self.bidirectional), ("bf", self.batch_first), ("bias", self.bias), ("packed", self.counts))
        text = f"{self.mode.lower()}-{self.inputs}.{self.hidden}-l{self.layers}-{self.steps}x{self.batch}"
        return text + "".join(f"-{name}" for name, flag in flags if flag) + f"-p{self.projected}" * bool(self.projected)


RAGGED_COUNTS = (4, 4, 3, 1, 1)
NETWORKS = [
    Recurrent(
        mode,
        5,
        hidden,
        layers,
        bidirectional,
        batch_first,
        bias,
        0,
        len(RAGGED_COUNTS),
        4,
        RAGGED_COUNTS if packed else None,
    )
    for mode in CELL_GATES
    for hidden in (1, 3, 17, 113)
    for layers, bidirectional, batch_first, bias, packed in itertools.product(
        (1, 2), (False, True), (False, True), (False, True), (False, True)
    )
    if not (packed and batch_first)
]
PROJECTED_NETWORKS = [
    Recurrent(
        "LSTM",
        5,
        hidden,
        layers,
        bidirectional,
        False,
        bias,
        size,
        len(RAGGED_COUNTS),
        4,
        RAGGED_COUNTS if packed else None,
    )
    for hidden, size in ((3, 1), (17, 16), (113, 17))
    for layers, bidirectional, bias, packed in itertools.product((1, 2), (False, True), (False, True), (False, True))
]
# A step and a sequence alone, more rows than go together, more steps than are multiplied at once, no sequence at all.
NETWORK_SIZES = [
    Recurrent(mode, inputs, hidden, 2, True, steps=steps, batch=batch)
    for mode in CELL_GATES
    for inputs, hidden, steps, batch in ((1, 17, 1, 1), (33, 40, 130, 1), (7, 64, 3, 101), (3, 18, 70, 3), (3, 5, 4, 0))
]
SOME_NETWORKS = [
    Recurrent(mode, 5, 17, 2, bidirectional, batch_first, True, 0, len(RAGGED_COUNTS), 4, counts)
    for mode in CELL_GATES
    for bidirectional, batch_first, counts in (
        (True, True, None),
        (False, False, RAGGED_COUNTS),
        (True, False, RAGGED_COUNTS),
    )
]
# Pairs of bfloat16 want even sizes; others are computed in float32.
HALF_NETWORKS = [
    *[
        Recurrent(mode, 6, 18, 2, bidirectional, batch_first, True, 0, len(RAGGED_COUNTS), 4, counts)
        for mode in CELL_GATES
        for bidirectional, batch_first, counts in ((True, True, None), (True, False, RAGGED_COUNTS))
    ],
    Recurrent("LSTM", 6, 130, steps=20, batch=1),
    Recurrent("GRU", 64, 64, steps=3, batch=101),
    Recurrent("GRU", 5, 18),
    Recurrent("LSTM", 6, 17, 2),
    Recurrent("LSTM", 6, 18, 2, True, projected=4),
    Recurrent("RNN_TANH", 6, 18, batch=0),
]
