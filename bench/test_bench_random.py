"""Random numbers and dropout against PyTorch's own, eager and compiled."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as TF
from cases import DROPOUTS
from parity import DTYPES

import aigc_fast.functional as AF

PEERS = ["aigc_fast", "torch", "torch.compile"]
SIZES = [1 << 10, 1 << 15, 1 << 22]


def peer(name, ours, theirs):
    if name == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(theirs)
    return ours if name == "aigc_fast" else theirs


def gate_dropout(input, p):
    output = AF.dropout(input, p)
    kept = output != 0
    assert abs(kept.double().mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / input.numel())
    torch.testing.assert_close(output[kept], (input[kept].double() / (1 - p)).to(input.dtype))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", DROPOUTS)
def test_dropout_training(benchmark, case, dtype, name):
    benchmark.group = f"dropout forward and backward, {case} {DROPOUTS[case][0]}, {dtype}"
    shape, p = DROPOUTS[case]
    input, upstream = torch.randn(shape).to(DTYPES[dtype]), torch.randn(shape).to(DTYPES[dtype])
    gate_dropout(input, p)
    function = peer(name, AF.dropout, TF.dropout)

    def step():
        leaf = input.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, p, True), leaf, upstream)

    step()
    benchmark(step)


@pytest.mark.parametrize("name", PEERS[:2])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("law", ["randn", "rand"])
def test_fill(benchmark, law, n, name):
    benchmark.group = f"{law}, {n} elements"
    sample = getattr(AF, law)(n).double()
    mean, variance = (0.0, 1.0) if law == "randn" else (0.5, 1 / 12)
    assert abs(sample.mean() - mean) < 5 * math.sqrt(variance / n)
    function = peer(name, getattr(AF, law), getattr(torch, law))
    benchmark(lambda: function(n))
