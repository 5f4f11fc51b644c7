"""Recurrent networks against PyTorch, with oneDNN and without, and a loop over its cell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from parity import assert_parity
from torch import Tensor, nn

import aigc_fast.nn as fast_nn

# Sequences, steps, units.
CALLS = {
    "one sequence, 128 units": (1, 64, 128),
    "one sequence, 256 units": (1, 64, 256),
    "one sequence, 512 units": (1, 64, 512),
    "8 sequences, 512 units": (8, 64, 512),
    "64 sequences, 512 units": (64, 64, 512),
    "one step, 256 units": (1, 1, 256),
    "one step, 512 units": (1, 1, 512),
}
PEERS = ["aigc_fast", "PyTorch", "PyTorch without oneDNN", "cell"]


def modules(name: str, units: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """PyTorch's, ours, and PyTorch's cell, with the same weights."""
    theirs, ours, cell = (
        cls(units, units) for cls in (getattr(nn, name), getattr(fast_nn, name), getattr(nn, f"{name}Cell"))
    )
    ours.load_state_dict(theirs.state_dict())
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in theirs.state_dict().items()})
    return theirs, ours, cell


def function(peer: str, name: str, input: Tensor) -> Callable[[], object]:
    theirs, ours, cell = modules(name, input.shape[-1])
    if peer == "aigc_fast":
        return lambda: ours(input)
    if peer == "PyTorch":
        return lambda: theirs(input)

    def loop() -> object:
        state = None
        for x in input:
            state = cell(x, state)
        return state

    def without() -> object:
        with torch.backends.mkldnn.flags(enabled=False):
            return theirs(input)

    return loop if peer == "cell" else without


def gate(name: str, input: Tensor) -> None:
    theirs, ours, _ = modules(name, input.shape[-1])
    found, stock = ours(input)[0], theirs(input)[0]
    assert_parity(found, stock, theirs.double()(input.double())[0])


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("call", CALLS)
def test_forward(benchmark, call, name, peer):
    benchmark.group = f"{name}, {call}"
    batch, steps, units = CALLS[call]
    input = torch.randn(steps, batch, units)
    with torch.no_grad():
        gate(name, input)
        benchmark(function(peer, name, input))


@pytest.mark.parametrize("peer", ["aigc_fast", "PyTorch"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_training(benchmark, name, peer):
    benchmark.group = f"{name}, 32 sequences of 128 steps, 256 units, forward and backward"
    theirs, ours, _ = modules(name, 256)
    module, input = ours if peer == "aigc_fast" else theirs, torch.randn(128, 32, 256)
    gate(name, input)

    def step():
        return torch.autograd.grad(module(input)[0].sum(), list(module.parameters()))

    benchmark(step)
