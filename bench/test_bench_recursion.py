"""Recursions against scipy, a loop in numba, torchlpc and, where it loads, torchaudio."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import DTYPES, Recursion, assert_parity, relative_error
from torch import Tensor

import aigc_fast.functional as AF

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


def tensors(call: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x and the coefficients, those of every step in torchlpc's sign, so that nobody has to negate them."""
    x, coeffs = CALLS[call].tensors(dtype)
    return x, -coeffs if coeffs.dim() == 3 else coeffs


def aigc_fast_function(x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    ours = AF.sample_wise_lpc if coeffs.dim() == 3 else AF.ar_recursion
    return lambda: ours(x, coeffs)


def scipy_function(x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    lfilter = pytest.importorskip("scipy.signal").lfilter
    b, a = np.ones(1, x.numpy().dtype), torch.cat([coeffs.new_ones(1), -coeffs]).numpy()
    return lambda: torch.from_numpy(lfilter(b, a, x.numpy()))


def numba_function(x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    numba = pytest.importorskip("numba")

    @numba.njit(parallel=True, fastmath=True)
    def recur(x, c):
        y = np.empty_like(x)
        for b in numba.prange(x.shape[0]):
            for t in range(x.shape[1]):
                sum_of_terms = x[b, t]
                for i in range(min(c.shape[0], t)):
                    sum_of_terms += c[i] * y[b, t - 1 - i]
                y[b, t] = sum_of_terms
        return y

    return lambda: torch.from_numpy(recur(x.numpy(), coeffs.numpy()))


def torchlpc_function(x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    sample_wise_lpc = pytest.importorskip("torchlpc").sample_wise_lpc
    if coeffs.dim() == 3:
        return lambda: sample_wise_lpc(x, coeffs)
    return lambda: sample_wise_lpc(x, (-coeffs).expand(*x.shape, coeffs.shape[-1]))


def torchaudio_function(x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    try:
        from torchaudio.functional import lfilter
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio does not load: {error}")
    a = torch.cat([coeffs.new_ones(1), -coeffs])
    b = torch.zeros_like(a)
    b[0] = 1
    return lambda: lfilter(x, a, b, clamp=False)


def function(name: str, x: Tensor, coeffs: Tensor) -> Callable[[], Tensor]:
    if coeffs.dim() > 1 and name not in ("aigc_fast", "torchlpc"):
        pytest.skip(f"{name} has no coefficients of every step")
    return globals()[f"{name}_function"](x, coeffs)


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
    x, coeffs = tensors(call, DTYPES[dtype])
    gate(x, coeffs)
    run = function(name, x, coeffs)
    with torch.no_grad():
        benchmark(run)


@pytest.mark.parametrize("name", ["aigc_fast", "torchlpc", "torchaudio"])
@pytest.mark.parametrize("call", CALLS)
def test_training(benchmark, call, name):
    benchmark.group = f"recursion, {call}, forward and backward, fp32"
    given, upstream = tensors(call), torch.randn(CALLS[call].batch, CALLS[call].length)
    function(name, *given)

    def step():
        inputs = [tensor.detach().requires_grad_() for tensor in given]
        return torch.autograd.grad(function(name, *inputs)(), inputs, upstream)

    benchmark(step)
