"""Generative adversarial networks: a multilayer perceptron and a DCGAN."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from aigc_fast import nn as fast
from aigc_fast.models.base import ImageModel, quarter_sides


class Discriminator(nn.Module):
    """Features of an image, and one logit from them; class-conditional by projection.

    The logit of image x and class y is head(features(x)) + embedding(y)·features(x)
    (Miyato and Koyama, "cGANs with Projection Discriminator", 2018).

    Args:
        features: images (N, C, H, W) to features (N, size).
        size: number of features.
        num_classes: None for an unconditional discriminator.
        spectral_norm: bounds every layer's Lipschitz constant by 1
            (Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018).
    """

    def __init__(self, features: nn.Sequential, size: int, num_classes: int | None, spectral_norm: bool) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(size, 1)
        self.embedding = None
        if num_classes is not None:
            self.embedding = nn.Embedding(num_classes, size)
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(size))
        if spectral_norm:
            for layer in list(_weighted(self)):
                parametrizations.spectral_norm(layer)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N,) of images being real: above 0 means real."""
        features = self.features(images)
        logits = self.head(features).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * features).sum(1)
        return logits


def _weighted(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding))


class GAN(ImageModel):
    """A generator of images in [-1, 1] and a discriminator of logits.

    Attributes:
        generator: (N, latent_dim + num_classes) to images.
        discriminator: images to logits.
    """

    family = "GANs"
    trainer = "aigc_fast.training.gan:GANTrainer"
    generator: nn.Sequential
    discriminator: Discriminator

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `LatentModel.decode`."""
        return self.generator(self.with_classes(z, labels))


class MLPGAN(GAN):
    """A GAN with one hidden layer in the generator and one in the discriminator.

    Generator: latent_dim → hidden → ReLU → pixels → Tanh. Discriminator: pixels → hidden → LeakyReLU(0.2) → a logit.

    Args:
        image_shape: (channels, height, width).
        latent_dim: size of z.
        hidden: width of the hidden layers.
        num_classes: makes the model class-conditional.
        dropout: of the discriminator's hidden layer.
        spectral_norm: on every layer of the discriminator.
    """

    name = "mlp-gan"

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 100,
        hidden: int = 256,
        num_classes: int | None = None,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            latent_dim=latent_dim,
            num_classes=num_classes,
            hidden=hidden,
            dropout=float(dropout),
            spectral_norm=spectral_norm,
        )
        pixels = math.prod(image_shape)
        self.generator = nn.Sequential(
            nn.Linear(latent_dim + (num_classes or 0), hidden),
            nn.ReLU(),
            nn.Linear(hidden, pixels),
            nn.Tanh(),
            nn.Unflatten(1, tuple(image_shape)),
        )
        features = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.LeakyReLU(0.2), fast.Dropout(dropout))
        self.discriminator = Discriminator(features, hidden, num_classes, spectral_norm)


class DCGAN(GAN):
    """A deep convolutional GAN, for images whose sides are multiples of 4.

    Generator: Linear to 2·width maps of a quarter of the side → BatchNorm → LeakyReLU → ConvTranspose 5×5 stride 2 to
    width maps → BatchNorm → LeakyReLU → ConvTranspose 5×5 stride 2 → Tanh; no biases.
    Discriminator: Conv 5×5 to width maps → LeakyReLU → Dropout → Conv 5×5 to 2·width maps → LeakyReLU → Dropout →
    Linear to a logit.
    After Radford et al., "Unsupervised Representation Learning with Deep Convolutional GANs", 2015.

    Args:
        image_shape: (channels, height, width).
        latent_dim: size of z.
        width: number of maps of the widest images.
        discriminator_strides: of the discriminator's two convolutions; (2, 2) takes a quarter of the time of (1, 2).
        num_classes: makes the model class-conditional.
        dropout: of the discriminator's layers.
        negative_slope: of every LeakyReLU.
        spectral_norm: on every layer of the discriminator.

    Raises:
        ValueError: when height or width is not a multiple of 4, or the strides are not two positive numbers.
    """

    name = "dcgan"
    least_batch = 2

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 100,
        width: int = 64,
        discriminator_strides: Sequence[int] = (1, 2),
        num_classes: int | None = None,
        dropout: float = 0.3,
        negative_slope: float = 0.2,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            latent_dim=latent_dim,
            num_classes=num_classes,
            width=width,
            discriminator_strides=list(discriminator_strides),
            dropout=float(dropout),
            negative_slope=float(negative_slope),
            spectral_norm=spectral_norm,
        )
        if len(discriminator_strides) != 2 or min(discriminator_strides) < 1:
            raise ValueError(f"discriminator_strides={tuple(discriminator_strides)}: expected two positive numbers")
        if not 0 <= negative_slope <= 1:
            raise ValueError(f"negative_slope={negative_slope}: expected 0 to 1")
        channels, rows, columns = quarter_sides(image_shape)
        inputs = latent_dim + (num_classes or 0)
        self.generator = _dcgan_generator(inputs, channels, rows, columns, width, negative_slope)
        features = _dcgan_features(channels, width, discriminator_strides, dropout, negative_slope)
        sides = [_strided(side, discriminator_strides) for side in image_shape[1:]]
        self.discriminator = Discriminator(features, 2 * width * math.prod(sides), num_classes, spectral_norm)


def _dcgan_generator(
    inputs: int, channels: int, rows: int, columns: int, width: int, negative_slope: float
) -> nn.Sequential:
    units = 2 * width * rows * columns
    return nn.Sequential(
        nn.Linear(inputs, units, bias=False),
        nn.BatchNorm1d(units),
        nn.LeakyReLU(negative_slope),
        nn.Unflatten(1, (2 * width, rows, columns)),
        fast.ConvTranspose2d(2 * width, width, 5, 2, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(negative_slope),
        fast.ConvTranspose2d(width, channels, 5, 2, 2, 1, bias=False),
        nn.Tanh(),
    )


def _dcgan_features(
    channels: int, width: int, strides: Sequence[int], dropout: float, negative_slope: float
) -> nn.Sequential:
    first, second = strides
    return nn.Sequential(
        fast.Conv2d(channels, width, 5, first, 2),
        nn.LeakyReLU(negative_slope),
        fast.Dropout(dropout),
        fast.Conv2d(width, 2 * width, 5, second, 2),
        nn.LeakyReLU(negative_slope),
        fast.Dropout(dropout),
        nn.Flatten(),
    )


def _strided(side: int, strides: Sequence[int]) -> int:
    # A convolution of 5×5 padded by 2 leaves ⌈side / stride⌉ pixels.
    for stride in strides:
        side = math.ceil(side / stride)
    return side
