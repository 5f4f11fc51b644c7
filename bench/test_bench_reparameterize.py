"""Sampling with the divergence against the formulas that users write, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from cases import BENCH_LATENTS
from parity import DTYPES, FLOORS, relative_error

import aigc_fast.functional as AF
from aigc_fast.ops.random import reference as numbers
from aigc_fast.ops.random.operators import draw_key
from aigc_fast.ops.reparameterize.operators import REPARAMETERIZE_KL

PEERS = ["aigc_fast", "torch", "torch.compile"]


def formula(mu, logvar):
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z, -0.5 * (1 + logvar - mu * mu - logvar.exp()).flatten(1).sum(1)


def peer(name):
    if name == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(formula)
    return AF.reparameterize_kl if name == "aigc_fast" else formula


def latents(case, dtype):
    shape = BENCH_LATENTS[case]
    mu, logvar = torch.randn(shape).to(DTYPES[dtype]), (torch.randn(shape) * 0.5 - 1).to(DTYPES[dtype])
    gate(mu, logvar)
    return mu, logvar


def gate(mu, logvar):
    key = draw_key(mu)
    z, kl = REPARAMETERIZE_KL(mu, logvar, key)
    exact = mu.double() + numbers.normal(mu.shape, key, torch.float64) * (0.5 * logvar.double()).exp()
    assert relative_error(z, exact) <= FLOORS[mu.dtype]
    assert relative_error(kl, formula(mu.double(), logvar.double())[1]) <= FLOORS[mu.dtype]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", BENCH_LATENTS)
def test_inference(benchmark, case, dtype, name):
    benchmark.group = f"reparameterize_kl forward, {case} {BENCH_LATENTS[case]}, {dtype}"
    mu, logvar = latents(case, dtype)
    function = peer(name)
    with torch.no_grad():
        function(mu, logvar)
        benchmark(function, mu, logvar)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("case", BENCH_LATENTS)
def test_training(benchmark, case, name):
    benchmark.group = f"reparameterize_kl forward and backward, {case} {BENCH_LATENTS[case]}, fp32"
    mu, logvar = latents(case, "fp32")
    upstream, function = torch.randn_like(mu), peer(name)

    def step():
        m, l = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
        z, kl = function(m, l)
        return torch.autograd.grad((z * upstream).sum() + kl.mean(), (m, l))

    step()
    benchmark(step)
