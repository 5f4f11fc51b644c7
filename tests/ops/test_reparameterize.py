"""Reparameterised sampling and the divergence: against float64, torch.distributions and PyTorch's own autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import LATENTS
from parity import FLOORS, relative_error
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import aigc_fast
import aigc_fast.functional as AF
import aigc_fast.nn as AN
from aigc_fast.ops.random import reference as numbers
from aigc_fast.ops.random.operators import draw_key
from aigc_fast.ops.reparameterize.operators import (
    KL_STANDARD_NORMAL,
    REPARAMETERIZE,
    REPARAMETERIZE_BACKWARD,
    REPARAMETERIZE_KL,
    REPARAMETERIZE_KL_BACKWARD,
)
from aigc_fast.runtime.backends import BackendError

FLOATS = ["fp32", "bf16", "fp16"]


def divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu * mu - logvar.exp()).reshape(len(mu), -1).sum(1)


def formula(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What a user writes today, with the noise given."""
    return mu + noise * torch.exp(0.5 * logvar), divergence(mu, logvar)


def latents(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(dtype), (torch.randn(shape) * 0.5 - 1).to(dtype)


def noise_of(key: Tensor, like: Tensor) -> Tensor:
    return numbers.normal(like.shape, key, torch.float64)


def gradients(
    function: Callable[..., tuple[Tensor, Tensor]], mu: Tensor, logvar: Tensor, upstream
) -> tuple[Tensor, ...]:
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    outputs = function(mu, logvar)
    return (*outputs, *torch.autograd.grad(outputs, (mu, logvar), [g.to(outputs[0].dtype) for g in upstream]))


@pytest.mark.parametrize("shape", LATENTS, ids=str)
def test_the_parts_agree_with_the_whole(backend, shape):
    mu, logvar = latents(shape)
    key = draw_key(mu)
    z, kl = REPARAMETERIZE_KL(mu, logvar, key)
    assert relative_error(REPARAMETERIZE(mu, logvar, key), z) < 1e-6
    assert relative_error(KL_STANDARD_NORMAL(mu, logvar), kl) < 1e-6
    upstream = torch.randn(shape)
    (found,) = torch.autograd.grad(REPARAMETERIZE(mu, logvar.requires_grad_(), key), logvar, upstream)
    expected = 0.5 * upstream.double() * noise_of(key, mu) * (0.5 * logvar.double()).exp()
    assert relative_error(found, expected) < FLOORS[torch.float32]


def test_divergence_is_that_of_torch_distributions(backend):
    mu, logvar = latents((17, 113), torch.float64)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    assert relative_error(AF.kl_standard_normal(mu.float(), logvar.float()), expected) < 2e-6
    if backend != "cpu":
        assert relative_error(AF.kl_standard_normal(mu, logvar), expected) < 1e-12


def test_divergence_of_the_standard_normal_is_zero(backend):
    zero = torch.zeros(3, 1000)
    assert torch.equal(AF.kl_standard_normal(zero, zero), torch.zeros(3))


def test_divergence_is_summed_in_double():
    mu, logvar = latents((2, 500_003))
    exact = divergence(mu.double(), logvar.double())
    assert relative_error(AF.kl_standard_normal(mu, logvar), exact) < 1e-7


def test_float64_keeps_its_precision():
    mu, logvar = latents((5, 113), torch.float64)
    key = draw_key(mu)
    z, kl = REPARAMETERIZE_KL(mu, logvar, key)
    expected = formula(mu, logvar, noise_of(key, mu))
    assert relative_error(z, expected[0]) < 1e-14
    assert relative_error(kl, expected[1]) < 1e-14


@pytest.mark.parametrize("op", ["sample", "divergence", "both", "to_logvar", "to_both"])
def test_derivatives_of_every_order_are_those_of_finite_differences(op):
    mu, logvar = latents((3, 5), torch.float64)
    key, upstream, rows = draw_key(mu), torch.randn(3, 5).double(), torch.randn(3).double()
    function, inputs = {
        "sample": (lambda m, l: REPARAMETERIZE(m, l, key), (mu, logvar)),
        "divergence": (KL_STANDARD_NORMAL, (mu, logvar)),
        "both": (lambda m, l: REPARAMETERIZE_KL(m, l, key), (mu, logvar)),
        "to_logvar": (lambda g, l: REPARAMETERIZE_BACKWARD(g, l, key), (upstream, logvar)),
        "to_both": (lambda g, k, m, l: REPARAMETERIZE_KL_BACKWARD(g, k, m, l, key), (upstream, rows, mu, logvar)),
    }[op]
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_only_the_wanted_gradient(backend):
    mu, logvar = latents((4, 6))
    for wanted in (mu, logvar):
        wanted.requires_grad_()
        z, kl = AF.reparameterize_kl(mu, logvar)
        assert torch.autograd.grad(z.sum(), wanted, retain_graph=True)[0].shape == (4, 6)
        assert torch.autograd.grad(kl.sum(), wanted)[0].shape == (4, 6)
        wanted.requires_grad_(False)


def test_noise_is_standard_normal_and_the_same_in_backward():
    mu, logvar = (tensor.requires_grad_() for tensor in latents((64, 1000)))
    z = AF.reparameterize(mu, logvar)
    noise = (z - mu).double() / (0.5 * logvar.double()).exp()
    assert abs(noise.mean()) < 4 / 64_000**0.5
    assert abs(noise.var() - 1) < 4 * (2 / 64_000) ** 0.5
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    assert relative_error(grad, 0.5 * (z - mu)) < 1e-5


@pytest.mark.parametrize("shape", [(3, 1), (64, 2), (100, 113), (2, 50_001)])
def test_threads_do_not_change_the_numbers(shape):
    mu, logvar = latents(shape)
    key, upstream = draw_key(mu), (torch.randn(shape), torch.randn(shape[0]))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(gradients(lambda m, l: REPARAMETERIZE_KL(m, l, key), mu, logvar, upstream))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_nan_and_infinity_go_where_pytorch_sends_them(backend):
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([0.0, 1.0, -1.0, inf, -inf, nan, 200.0, -300.0, 88.8, -104.0])
    mu, logvar = (grid.reshape(-1, 1) for grid in torch.meshgrid(values, values, indexing="ij"))
    key = draw_key(mu)
    z, kl = REPARAMETERIZE_KL(mu, logvar, key)
    expected = formula(mu, logvar, noise_of(key, mu).float())
    torch.testing.assert_close(z, expected[0], equal_nan=True)
    torch.testing.assert_close(kl, expected[1], equal_nan=True)


def test_layouts_give_the_same_numbers(backend):
    mu, logvar = latents((3, 4, 5, 6))
    key = draw_key(mu)
    upstream = torch.randn(3, 4, 5, 6), torch.randn(3)
    expected = gradients(lambda m, l: REPARAMETERIZE_KL(m, l, key), mu, logvar, upstream)
    strided = torch.stack([mu, mu], -1)[..., 0], logvar.transpose(0, 3).contiguous().transpose(0, 3)
    last = mu.to(memory_format=torch.channels_last), logvar.to(memory_format=torch.channels_last)
    spread = torch.randn(()).expand(3, 4, 5, 6), torch.randn(()).expand(3)
    for m, l in (strided, last):
        found = gradients(lambda m, l: REPARAMETERIZE_KL(m, l, key), m, l, upstream)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    dense = [tensor.contiguous() for tensor in spread]
    found = gradients(lambda m, l: REPARAMETERIZE_KL(m, l, key), mu, logvar, spread)
    for a, b in zip(found, gradients(lambda m, l: REPARAMETERIZE_KL(m, l, key), mu, logvar, dense), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (2, 0, 3)])
def test_empty_tensors(backend, shape):
    mu, logvar = (torch.zeros(shape, requires_grad=True) for _ in range(2))
    z, kl = AF.reparameterize_kl(mu, logvar)
    assert z.shape == shape
    assert torch.equal(kl, torch.zeros(shape[0]))
    grads = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))
    assert all(grad.shape == shape for grad in grads)
    assert torch.equal(AF.kl_standard_normal(mu, logvar), torch.zeros(shape[0]))


def test_scalars_can_be_sampled(backend):
    assert AF.reparameterize(torch.tensor(1.0), torch.tensor(-300.0)) == 1.0


def test_autocast_computes_in_float32():
    mu, logvar = latents((4, 6), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        z, kl = AF.reparameterize_kl(mu, logvar.float())
    expected = formula(mu.float(), logvar.float(), torch.zeros(4, 6))
    assert z.dtype == kl.dtype == torch.float32
    assert relative_error(kl, expected[1]) < 1e-6


def test_seeds_repeat_and_generators_advance():
    mu, logvar = latents((5, 7))
    torch.manual_seed(3)
    first, second = AF.reparameterize(mu, logvar), AF.reparameterize_kl(mu, logvar)[0]
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(AF.reparameterize(mu, logvar, generator=generator), first)
    assert torch.equal(AF.reparameterize_kl(mu, logvar, generator=generator)[0], second)
    assert not torch.equal(first, second)


def test_compiled_training_step_equals_the_eager_one():
    def loss(mu: Tensor, logvar: Tensor) -> Tensor:
        z, kl = AF.reparameterize_kl(mu, logvar)
        return z.sin().sum() + kl.mean() + AF.kl_standard_normal(mu, logvar).sum()

    def step(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        return torch.autograd.grad(function(mu, logvar), (mu, logvar))

    mu, logvar = (tensor.requires_grad_() for tensor in latents((4, 6)))
    for a, b in zip(step(torch.compile(loss, fullgraph=True)), step(loss), strict=True):
        torch.testing.assert_close(a, b)


BAD = {
    "logvar has shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "logvar has dtype torch.float64": (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)),
    "logvar is on meta": (torch.zeros(2, 3), torch.zeros(2, 3, device="meta")),
    "mu has dtype torch.int64": (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)),
}


@pytest.mark.parametrize("function", [AF.reparameterize, AF.reparameterize_kl, AF.kl_standard_normal])
@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(function, message):
    with pytest.raises(RuntimeError, match=message):
        function(*BAD[message])


@pytest.mark.parametrize("function", [AF.reparameterize, AF.reparameterize_kl, AF.kl_standard_normal])
def test_what_is_no_tensor_is_named(function):
    with pytest.raises(TypeError, match="mu is list: expected a Tensor"):
        function([1.0], torch.zeros(1))
    with pytest.raises(TypeError, match="logvar is NoneType: expected a Tensor"):
        function(torch.zeros(1), None)
    if function is not AF.kl_standard_normal:
        with pytest.raises(TypeError, match=r"generator is int: expected a torch\.Generator"):
            function(torch.zeros(1), torch.zeros(1), generator=2)


def test_a_batch_is_needed_for_the_divergence():
    for function in (AF.reparameterize_kl, AF.kl_standard_normal):
        with pytest.raises(RuntimeError, match=r"mu has shape \(\): expected"):
            function(torch.tensor(0.0), torch.tensor(0.0))


def test_forced_backend_says_why_it_cannot_run():
    mu, logvar = latents((2, 3), torch.float64)
    with aigc_fast.backend("cpu"), pytest.raises(BackendError, match="float64 is computed by the reference"):
        AF.reparameterize(mu, logvar)


def test_module():
    mu, logvar = latents((4, 6))
    z, kl = AN.Reparameterize(return_kl=True)(mu, logvar)
    assert z.shape == (4, 6)
    assert relative_error(kl, divergence(mu, logvar)) < 1e-6
    module = AN.Reparameterize()
    found = module(mu, logvar, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, AF.reparameterize(mu, logvar, generator=torch.Generator().manual_seed(1)))
    assert module.state_dict() == {}
    assert repr(module) == "Reparameterize(return_kl=False)"
