"""Losses against their formulas in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributions import Bernoulli

from aigc_fast import functional
from aigc_fast.models import DCGAN, ConvVAE
from aigc_fast.training import LOSSES, diversity, gradient_penalty
from aigc_fast.training.losses import free_bits_kl


@pytest.fixture
def logits():
    return torch.randn(2, 50, dtype=torch.float64) * 3


@pytest.mark.parametrize("name", ["minimax", "non-saturating"])
def test_the_discriminator_is_a_classifier(name, logits):
    real, fake = logits
    expected = -Bernoulli(logits=real).log_prob(torch.ones_like(real)).mean()
    expected -= Bernoulli(logits=fake).log_prob(torch.zeros_like(fake)).mean()
    torch.testing.assert_close(LOSSES[name].discriminator(real, fake), expected, rtol=1e-12, atol=0)


def test_the_generator_s_losses(logits):
    fake = logits[1]
    probability = torch.sigmoid(fake)
    expected = {
        "minimax": (1 - probability).log().mean(),
        "non-saturating": -probability.log().mean(),
        "hinge": -fake.mean(),
        "wgan-gp": -fake.mean(),
    }
    assert set(expected) == set(LOSSES)
    for name, value in expected.items():
        torch.testing.assert_close(LOSSES[name].generator(fake), value, rtol=1e-10, atol=0)


def test_hinge_and_wasserstein_discriminators(logits):
    real, fake = logits
    hinge = torch.where(real < 1, 1 - real, 0).mean() + torch.where(fake > -1, 1 + fake, 0).mean()
    torch.testing.assert_close(LOSSES["hinge"].discriminator(real, fake), hinge, rtol=1e-12, atol=0)
    torch.testing.assert_close(LOSSES["wgan-gp"].discriminator(real, fake), fake.mean() - real.mean())


def test_losses_stay_finite_where_the_discriminator_is_sure():
    sure = torch.tensor([-500.0, 500.0])
    for loss in LOSSES.values():
        assert loss.discriminator(sure, sure.flip(0)).isfinite()
        assert loss.generator(sure).isfinite()


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_gradient_penalty_and_its_gradients_are_autograd_s(num_classes, spectral_norm):
    ours = DCGAN(
        image_shape=(1, 12, 8), width=3, dropout=0.0, num_classes=num_classes, spectral_norm=spectral_norm
    ).discriminator.eval()
    theirs = _plain_twin(ours).double()
    real, fake = torch.rand(2, 5, 1, 12, 8)
    labels = None if num_classes is None else torch.tensor([0, 1, 2, 1, 0])

    torch.manual_seed(3)
    penalty = gradient_penalty(lambda images: ours(images, labels), real, fake)
    got = torch.autograd.grad(penalty, list(ours.parameters()), allow_unused=True)

    torch.manual_seed(3)
    fraction = functional.rand(5, 1, 1, 1).double()
    between = (fraction * fake.double() + (1 - fraction) * real.double()).requires_grad_()
    (slope,) = torch.autograd.grad(theirs(between, labels).sum(), between, create_graph=True)
    expected = ((slope.pow(2).sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
    wanted = torch.autograd.grad(expected, list(theirs.parameters()), allow_unused=True)

    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=1e-6)
    for ours_gradient, theirs_gradient in zip(got, wanted, strict=True):
        assert (ours_gradient is None) == (theirs_gradient is None)
        if ours_gradient is not None:
            torch.testing.assert_close(ours_gradient.double(), theirs_gradient, rtol=1e-4, atol=1e-5)
    assert max(gradient.abs().max() for gradient in got if gradient is not None) > 1e-3


def _plain_twin(module):
    """The module with PyTorch's own convolutions."""
    twin = copy.deepcopy(module)
    for index, layer in enumerate(twin.features):
        if isinstance(layer, torch.nn.Conv2d):
            plain = torch.nn.Conv2d(layer.in_channels, layer.out_channels, 5, layer.stride, 2)
            if hasattr(layer, "parametrizations"):
                torch.nn.utils.parametrizations.spectral_norm(plain)
            plain.load_state_dict(layer.state_dict())
            twin.features[index] = plain.eval()
    return twin


def test_diversity_is_one_for_data_and_falls_with_the_modes():
    data = torch.rand(2, 64, 1, 6, 6)
    assert 0.9 < diversity(data[0], data[1]) < 1.1
    few = data[0][:4].repeat(16, 1, 1, 1)
    assert diversity(few + 0.01 * torch.randn_like(few), data[1]) < 0.1
    assert diversity(data[0][:1].expand(64, -1, -1, -1), data[1]) < 0.01


def test_free_bits_count_only_what_is_above_the_allowance():
    kl = torch.tensor([0.1, 0.5, 2.0], requires_grad=True)
    total = free_bits_kl(kl, 0.5)
    assert total.item() == pytest.approx(0.5 + 0.5 + 2.0)
    total.backward()
    assert kl.grad[0] == 0
    assert kl.grad[2] == 1


def test_the_evidence_lower_bound_and_its_gradients_are_those_of_the_distributions():
    model = ConvVAE(width=3, image_shape=(1, 8, 8)).double()
    images = torch.randint(0, 2, (6, 1, 8, 8)).double() * 2 - 1
    torch.manual_seed(9)
    log_likelihood, kl, mu, logvar = model(images)
    bound = (log_likelihood - kl).mean()
    got = torch.autograd.grad(bound, list(model.parameters()))

    torch.manual_seed(9)
    mu, logvar = model.encode(images)
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    z = functional.reparameterize(mu, logvar)
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(1)
    fit = Bernoulli(logits=model.decoder(z)).log_prob((images + 1) / 2).sum((1, 2, 3))
    expected = (fit - divergence).mean()
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(bound, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
