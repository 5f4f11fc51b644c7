"""One step of each family."""

from __future__ import annotations

import pytest
import torch

from aigc_fast.data import digits
from aigc_fast.errors import UserError
from aigc_fast.models import DCGAN, MLPGAN, VAE, ConvVAE
from aigc_fast.training import GANConfig, VAEConfig, default_config, make_trainer


@pytest.fixture(scope="module")
def images():
    return digits().batch(slice(0, 16))


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def changed(module, before):
    return [not torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True)]


def test_each_step_trains_both_players(images):
    model = DCGAN(width=4)
    trainer = make_trainer(model, GANConfig())
    generator, discriminator = weights(model.generator), weights(model.discriminator)
    values = trainer.step(images)
    assert all(changed(model.generator, generator))
    assert all(changed(model.discriminator, discriminator))
    assert {"d_loss", "g_loss", "diversity"} <= set(values)


def test_the_discriminator_is_frozen_while_the_generator_trains(images, monkeypatch):
    model = MLPGAN(hidden=8)
    trainer = make_trainer(model, GANConfig())
    seen = []
    generator_loss = trainer.loss.generator

    def watched(logits):
        seen.append([parameter.requires_grad for parameter in model.discriminator.parameters()])
        return generator_loss(logits)

    trainer.loss = trainer.loss._replace(generator=watched)
    trainer.step(images)
    assert seen == [[False] * 4]
    assert all(parameter.requires_grad for parameter in model.discriminator.parameters())


def test_the_generator_trains_every_critic_steps(images):
    model = MLPGAN(hidden=8)
    trainer = make_trainer(model, default_config(model, loss="wgan-gp", critic_steps=3))
    before = weights(model.generator)
    moved = []
    for _ in range(6):
        values = trainer.step(images)
        moved.append(any(changed(model.generator, before)))
        assert ("g_loss" in values) == moved[-1]
        before = weights(model.generator)
    assert moved == [False, False, True] * 2


@pytest.mark.parametrize("loss", ["minimax", "non-saturating", "hinge", "wgan-gp"])
def test_every_loss_trains_a_conditional_gan_with_spectral_norm(loss, images):
    model = DCGAN(width=4, num_classes=10, spectral_norm=True, discriminator_strides=(2, 2))
    trainer = make_trainer(model, default_config(model, loss=loss, critic_steps=1))
    labels = torch.arange(16) % 10
    for _ in range(2):
        values = trainer.step(images, labels)
    assert all(torch.isfinite(torch.tensor(value)) for value in values.values())
    assert ("penalty" in values) == (loss == "wgan-gp")


def test_frozen_parameters_stay_frozen(images):
    model = MLPGAN(hidden=8)
    frozen = model.discriminator.features[1].requires_grad_(False)
    before = weights(frozen)
    trainer = make_trainer(model, GANConfig())
    for _ in range(2):
        trainer.step(images)
    assert [parameter.requires_grad for parameter in model.discriminator.parameters()] == [False, False, True, True]
    assert all(torch.equal(old, new) for old, new in zip(before, weights(frozen), strict=True))


def test_samples_come_from_the_averaged_generator(images):
    model = MLPGAN(hidden=8)
    trainer = make_trainer(model, GANConfig(average=0.9))
    expected = None
    for _ in range(4):
        trainer.step(images)
        now = weights(model.generator)
        expected = now if expected is None else [0.9 * old + 0.1 * new for old, new in zip(expected, now, strict=True)]
    live = model.generator
    with trainer.sampling() as sampled:
        torch.testing.assert_close(weights(sampled.generator), expected)
    assert model.generator is live
    trainer.finish()
    torch.testing.assert_close(weights(model.generator), expected)
    assert not model.training


def test_without_averaging_samples_come_from_the_generator(images):
    model = MLPGAN(hidden=8)
    trainer = make_trainer(model, GANConfig(average=0.0))
    with trainer.sampling() as sampled:
        assert sampled.generator is model.generator
    assert list(trainer.modules) == ["model"]


def test_beta_warms_up_and_weighs_the_kl(images):
    model = VAE(hidden=8)
    trainer = make_trainer(model, VAEConfig(beta=4.0, warmup=4))
    betas = []
    for _ in range(6):
        values = trainer.step(images)
        betas.append(values["beta"])
        assert values["loss"] == pytest.approx(values["reconstruction"] + values["beta"] * values["kl"], rel=1e-5)
        assert values["elbo"] == pytest.approx(-values["reconstruction"] - values["kl"], rel=1e-5)
    assert betas == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_free_bits_leave_a_small_kl_out_of_the_loss(images):
    model = VAE(hidden=8, latent_dim=5)
    trainer = make_trainer(model, VAEConfig(free_bits=100.0))
    values = trainer.step(images)
    assert values["loss"] == pytest.approx(values["reconstruction"] + 5 * 100.0, rel=1e-5)
    assert values["kl"] < 100


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_vae_learns_the_digits(likelihood):
    data = digits()
    torch.manual_seed(0)
    model = VAE(hidden=64, latent_dim=1, likelihood=likelihood, num_classes=10)
    trainer = make_trainer(model, VAEConfig(learning_rate=3e-3))
    first = trainer.step(data.batch(slice(0, 128)), data.labels[:128])
    for step in range(200):
        part = torch.arange(step * 128, step * 128 + 128) % len(data)
        last = trainer.step(data.batch(part), data.labels[part])
    assert last["elbo"] > first["elbo"] + 200
    labels = torch.arange(10)
    nearest = torch.cdist(model.sample(10, z=torch.zeros(10, 1), labels=labels).flatten(1), _class_means(data)).argmin(
        1
    )
    assert (nearest == labels).sum() >= 6


def _class_means(data):
    return torch.stack([data.batch()[data.labels == label].mean(0).flatten() for label in range(10)])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps": 0}, "steps=0"),
        ({"seed": -1}, "seed=-1"),
        ({"loss": "lsgan"}, "one of minimax, non-saturating, hinge, wgan-gp"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"discriminator_learning_rate": -1.0}, "discriminator_learning_rate"),
        ({"beta1": 1.0}, "beta1"),
        ({"critic_steps": 0}, "critic_steps"),
        ({"beta": 2.0}, "mlp-gan has no such setting"),
    ],
)
def test_wrong_settings_are_named(settings, expected):
    with pytest.raises(UserError, match=expected):
        default_config(MLPGAN, **settings)


def test_wrong_settings_of_a_vae_are_named():
    with pytest.raises(UserError, match="free_bits"):
        default_config(ConvVAE, free_bits=-1.0)
    with pytest.raises(UserError, match="conv-vae has no such setting"):
        default_config(ConvVAE, loss="hinge")


def test_defaults_follow_the_loss_and_settings_come_first():
    config = default_config(DCGAN, loss="wgan-gp", learning_rate=3e-4, batch_size=None)
    assert (config.critic_steps, config.beta1, config.beta2) == (5, 0.0, 0.9)
    assert (config.learning_rate, config.batch_size) == (3e-4, GANConfig().batch_size)


def test_a_configuration_of_another_family_is_refused():
    with pytest.raises(TypeError, match="VAEConfig does not suit a MLPGAN"):
        make_trainer(MLPGAN(hidden=4), VAEConfig())
