"""Recursions against scipy, a loop in numba, torchlpc and, where it loads, torchaudio."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Recursion
from parity import DTYPES, assert_parity, relative_error
from torch import Tensor

import aigc_fast.functional as AF
from aigc_fast.bench import peers

CALLS = {
    "1 of 10^6, order 2": Recursion(1, 1_000_000, 2),
    "1 of 10^6, order 16": Recursion(1, 1_000_000, 16),
    "64 of 16000, order 2": Recursion(64, 16_000, 2),
    "64 of 16000, order 10": Recursion(64, 16_000, 10),
    "64 of 16000, order 24": Recursion(64, 16_000, 24),
    "1024 of 1000, order 4": Recursion(1024, 1000, 4),
    "8 of 48000, order 22, of every step": Recursion(8, 48_000, 22, "varying"),
}
PEERS = ["aigc_fast", "scipy", "numba", "torchlpc", "torchaudio"]


def torchaudio_function(x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    try:
        from torchaudio.functional import lfilter
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio does not load: {error}")
    a = torch.cat([coeffs.new_ones(1), -coeffs])
    b = torch.zeros_like(a)
    b[0] = 1
    return lambda: lfilter(x, a, b, clamp=False)


def tensors_of(call: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x and the coefficients: those of every step in torchlpc's sign, which nobody is charged for then."""
    x, coeffs = CALLS[call].tensors(dtype)
    return x, -coeffs if coeffs.dim() > 1 else coeffs


def function(name: str, x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    if name == "aigc_fast":
        return lambda: (AF.sample_wise_lpc if coeffs.dim() > 1 else AF.ar_recursion)(x, coeffs)
    if coeffs.dim() > 1 and name != "torchlpc":
        pytest.skip(f"{name} has no coefficients of every step")
    if name == "torchaudio":
        return torchaudio_function(x, coeffs)
    makers = {
        "scipy": peers.scipy_lfilter,
        "numba": peers.numba_loop,
        "torchlpc": lambda: peers.torchlpc(coeffs.dim() > 1),
    }
    peer = makers[name]()
    if peer is None:
        pytest.skip(f"{name} is not installed")
    return lambda: peer(x, coeffs)


def gate(x: Tensor, coeffs: Tensor) -> None:
    peer = "scipy" if coeffs.dim() == 1 else "torchlpc"
    found, exact = function("aigc_fast", x, coeffs)(), function(peer, x.double(), coeffs.double())()
    if x.dtype == torch.float64:
        assert relative_error(found, exact) < 1e-10
    else:
        assert_parity(found, function(peer, x, coeffs)(), exact)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("call", CALLS)
def test_forward(benchmark, call, dtype, name):
    benchmark.group = f"recursion, {call}, {dtype}"
    x, coeffs = tensors_of(call, DTYPES[dtype])
    gate(x, coeffs)
    run = function(name, x, coeffs)
    with torch.no_grad():
        benchmark(run)


@pytest.mark.parametrize("name", ["aigc_fast", "torchlpc", "torchaudio"])
@pytest.mark.parametrize("call", CALLS)
def test_training(benchmark, call, name):
    benchmark.group = f"recursion, {call}, forward and backward, fp32"
    tensors, upstream = tensors_of(call), torch.randn(CALLS[call].batch, CALLS[call].length)
    function(name, *tensors)

    def step():
        inputs = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(function(name, *inputs)(), inputs, upstream)

    benchmark(step)
