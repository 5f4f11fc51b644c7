"""What all models share, shapes, classes, sampling, the same again from a configuration; and the models of images."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from aigc_fast import nn as fast
from aigc_fast.errors import UserError
from aigc_fast.models import DCGAN, MLPGAN, MODELS, VAE, ConvVAE, ImageModel, LatentModel, create

NARROW = {
    "mlp-gan": {"hidden": 16},
    "dcgan": {"width": 4},
    "vae": {"hidden": 16},
    "conv-vae": {"width": 4},
    "vocoder": {"width": 4, "length": 500, "sample_rate": 8000},
    "video": {"width": 4, "hidden": 4, "frame_shape": (1, 8, 8), "frames": 6, "given": 2},
}
OPTIONS = {
    "mlp-gan": {"dropout": 0.5, "spectral_norm": True},
    "dcgan": {"discriminator_strides": [2, 2], "spectral_norm": True, "negative_slope": 0.3, "dropout": 0.0},
    "vae": {"likelihood": "gaussian", "latent_dim": 3},
    "conv-vae": {"likelihood": "gaussian", "latent_dim": 5},
    "vocoder": {"latent_dim": 4},
    "video": {"latent_dim": 3, "core": "latent", "likelihood": "gaussian"},
}
SHAPES = {"vocoder": (500,), "video": (6, 1, 8, 8)}
IMAGES = [name for name, model in MODELS.items() if issubclass(model, ImageModel)]
CLASSES = (None, 7)


@pytest.fixture(params=[name for name, model in MODELS.items() if issubclass(model, LatentModel)])
def name(request):
    return request.param


@pytest.mark.parametrize("num_classes", CLASSES)
def test_the_configuration_builds_the_same_model_again(name, num_classes):
    shape = {"image_shape": (3, 8, 12)} if name in IMAGES else {}
    model = create(name, num_classes=num_classes, **shape, **NARROW[name], **OPTIONS[name])
    twin = create(name, **json.loads(json.dumps(model.config)))
    assert twin.config == model.config
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in twin.state_dict().items()} == shapes
    twin.load_state_dict(model.state_dict())
    z = torch.randn(5, model.latent_dim)
    assert torch.equal(twin.sample(5, z=z), model.sample(5, z=z))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 4, 20)])
def test_samples_are_images_in_range(name, image_shape):
    model = create(name, image_shape=image_shape, **NARROW[name])
    images = model.sample(6)
    assert images.shape == (6, *image_shape)
    assert images.abs().max() <= 1
    assert not images.requires_grad
    assert model.training


def test_no_samples_are_an_empty_tensor(name):
    model = create(name, num_classes=3, **NARROW[name])
    assert model.sample(0).shape == (0, *SHAPES.get(name, (1, 28, 28)))


def test_a_generator_makes_samples_repeatable(name):
    model = create(name, **NARROW[name])
    first, second, other = (model.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_sampling_leaves_each_module_in_its_mode():
    model = DCGAN(width=4)
    model.generator[1].eval()
    model.sample(2)
    assert model.generator[4].training
    assert not model.generator[1].training


def test_sampling_leaves_batch_statistics_alone():
    model = DCGAN(width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.sample(8)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_class_changes_the_image_and_one_label_stands_for_all(name):
    model = create(name, num_classes=10, **NARROW[name])
    z = torch.randn(4, model.latent_dim)
    sevens = model.sample(4, z=z, labels=7)
    assert torch.equal(sevens, model.sample(4, z=z, labels=[7, 7, 7, 7]))
    assert (sevens != model.sample(4, z=z, labels=3)).flatten(1).any(1).all()


def test_without_labels_classes_come_in_turn(name):
    model = create(name, num_classes=3, **NARROW[name])
    z = torch.randn(5, model.latent_dim)
    assert torch.equal(model.sample(5, z=z), model.sample(5, z=z, labels=torch.tensor([0, 1, 2, 0, 1])))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1], "shape"),
        ([0, 1, 3], "classes 0 to 2, got 0 to 3"),
        ([0, -1, 2], "got -1 to 2"),
        ([0.0, 1.0, 2.0], "integers"),
        ([[0], [1], [2]], "shape"),
    ],
)
def test_wrong_labels_are_named(labels, expected):
    model = VAE(num_classes=3, hidden=4)
    with pytest.raises(ValueError, match=f"labels.*{expected}"):
        model.sample(3, labels=labels)


def test_labels_are_needed_by_conditional_models_only():
    with pytest.raises(ValueError, match=r"labels.*without classes"):
        VAE(hidden=4).sample(2, labels=1)
    with pytest.raises(ValueError, match=r"labels.*got None"):
        VAE(hidden=4, num_classes=2).reconstruct(torch.zeros(2, 1, 28, 28))


def test_wrong_latents_are_named():
    with pytest.raises(ValueError, match=r"z: expected shape \(2, 20\), got \(2, 3\)"):
        VAE(hidden=4).sample(2, z=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="n=-1"):
        VAE(hidden=4).sample(-1)
    for n in (2.5, "a", None):
        with pytest.raises(TypeError, match=r"n is \w+: expected an integer"):
            VAE(hidden=4).sample(n)
    with pytest.raises(TypeError, match=r"generator is int: expected a torch\.Generator"):
        VAE(hidden=4).sample(2, generator=3)


def test_labels_and_shapes_of_another_kind() -> None:
    model = create("vae", num_classes=3)
    with pytest.raises(TypeError, match="labels is str: expected classes"):
        model.sample(2, labels="7")
    for shape in (28, (1, 28), "abc", (1, 2.5, 3)):
        with pytest.raises(ValueError, match=r"image_shape=.*: expected \(channels, height, width\), all positive"):
            create("vae", image_shape=shape)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("dcgan", {"image_shape": (1, 30, 28)}, "multiples of 4"),
        ("conv-vae", {"image_shape": (1, 28, 30)}, "multiples of 4"),
        ("vae", {"image_shape": (28, 28)}, "image_shape"),
        ("vae", {"latent_dim": 0}, "latent_dim"),
        ("vae", {"likelihood": "laplace"}, "likelihood='laplace'"),
        ("mlp-gan", {"num_classes": 0}, "num_classes"),
        ("mlp-gan", {"depth": 3}, "depth"),
        ("dcgan", {"discriminator_strides": (0, 2)}, r"discriminator_strides=\(0, 2\)"),
        ("dcgan", {"discriminator_strides": (2,)}, r"discriminator_strides=\(2,\)"),
        ("style-gan", {}, "one of mlp-gan, dcgan, vae, conv-vae, vocoder"),
    ],
)
def test_wrong_configurations_are_named(name, config, expected):
    with pytest.raises(UserError, match=expected):
        create(name, **config)


def test_whole_numbers_do_where_fractions_are_expected():
    assert MLPGAN(hidden=4, dropout=0).discriminator.features[-1].p == 0
    features = DCGAN(width=4, dropout=0, negative_slope=0).discriminator.features
    assert (features[1].negative_slope, features[2].p) == (0, 0)
    with pytest.raises(ValueError, match="dropout"):
        DCGAN(width=4, dropout=-1)


def test_dcgan_has_the_published_layers():
    generator, features = DCGAN().generator, DCGAN().discriminator.features
    assert generator[0].weight.shape == (128 * 7 * 7, 100)
    transposed = [layer for layer in generator if isinstance(layer, fast.ConvTranspose2d)]
    assert [(layer.weight.shape[:2], layer.kernel_size, layer.stride) for layer in transposed] == [
        ((128, 64), (5, 5), (2, 2)),
        ((64, 1), (5, 5), (2, 2)),
    ]
    assert all(layer.bias is None for layer in (generator[0], *transposed))
    convolutions = [layer for layer in features if isinstance(layer, fast.Conv2d)]
    assert [(layer.weight.shape[:2], layer.stride) for layer in convolutions] == [
        ((64, 1), (1, 1)),
        ((128, 64), (2, 2)),
    ]
    assert [layer.p for layer in features if isinstance(layer, fast.Dropout)] == [0.3, 0.3]


def test_mlp_gan_has_the_published_layers():
    model = MLPGAN()
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() == 2]
    assert shapes == [(256, 100), (784, 256), (256, 784), (1, 256)]


def test_a_conditional_discriminator_looks_at_the_class():
    model = DCGAN(width=4, num_classes=10, dropout=0.0)
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 5, 9])
    logits = model.discriminator(images, labels)
    features = model.discriminator.features(images)
    projected = (features * model.discriminator.embedding.weight[labels]).sum(1)
    torch.testing.assert_close(logits, model.discriminator.head(features)[:, 0] + projected)


@pytest.mark.parametrize("name", ["mlp-gan", "dcgan"])
def test_spectral_norm_bounds_every_layer(name):
    model = create(name, num_classes=4, spectral_norm=True, dropout=0.0, **NARROW[name])
    with torch.no_grad():
        for key, parameter in model.discriminator.named_parameters():
            if key.endswith("original"):
                parameter.mul_(30)
        for _ in range(200):
            model.discriminator(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    layers = [layer for layer in model.discriminator.modules() if hasattr(layer, "parametrizations")]
    assert len(layers) == 3 + (name == "dcgan")
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1).double(), ord=2)
        assert 0.9 < norm < 1.01


@pytest.mark.parametrize("cls", [VAE, ConvVAE])
@pytest.mark.parametrize("num_classes", CLASSES)
def test_the_kl_is_that_of_the_distributions(cls, num_classes):
    model = cls(num_classes=num_classes, latent_dim=3).double()
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64) * 2 - 1
    labels = None if num_classes is None else torch.arange(5)
    _, kl, mu, logvar = model(images, labels)
    posterior = Normal(mu, (0.5 * logvar).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    torch.testing.assert_close(kl, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.encode(images, labels), (mu, logvar))


@pytest.mark.parametrize("cls", [VAE, ConvVAE])
def test_the_bernoulli_likelihood_is_that_of_the_distribution(cls):
    model = cls().double()
    images = torch.randint(0, 2, (4, 1, 28, 28)).double() * 2 - 1
    z = torch.randn(4, model.latent_dim, dtype=torch.float64)
    law = Bernoulli(logits=model.decoder(z))
    expected = law.log_prob((images + 1) / 2).flatten(1).sum(1)
    torch.testing.assert_close(model.log_likelihood(images, z), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.decode(z), law.mean * 2 - 1, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", [VAE, ConvVAE])
def test_the_gaussian_likelihood_is_that_of_the_distribution(cls):
    model = cls(likelihood="gaussian").double()
    torch.nn.init.constant_(model.log_scale, -0.7)
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64) * 2 - 1
    z = torch.randn(4, model.latent_dim, dtype=torch.float64)
    expected = Normal(model.decode(z), math.exp(-0.7)).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(model.log_likelihood(images, z), expected, rtol=1e-10, atol=1e-10)


def test_both_sides_of_a_conditional_vae_see_the_class():
    model = ConvVAE(num_classes=4, width=4)
    images = torch.rand(3, 1, 28, 28)
    assert not torch.equal(model.encode(images, 0)[0], model.encode(images, 1)[0])
    assert not torch.equal(model.reconstruct(images, 0), model.reconstruct(images, 1))


def test_convvae_has_a_latent_plane_by_default():
    assert ConvVAE().latent_dim == 2
