"""Variational autoencoders: a multilayer perceptron, and a convolutional one with a latent plane."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast import nn as fast
from aigc_fast.models.base import ImageModel, Labels, LatentModel, evaluating, quarter_sides
from aigc_fast.models.likelihood import check_likelihood, pixel_log_likelihood, pixel_mean


class VariationalAutoencoder(LatentModel):
    """An autoencoder whose code is a distribution (Kingma and Welling, "Auto-Encoding Variational Bayes", 2013).

    The encoder gives μ and log σ² of q(z|x) = N(μ, σ²); z = μ + σ·ε; the decoder gives p(x|z). An x is an image or a
    sound, as the model's medium is.
    """

    family = "VAEs"
    trainer = "aigc_fast.training.vae:VAETrainer"

    @abstractmethod
    def encode(self, inputs: Tensor, labels: Labels | None = None) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each (N, latent_dim), of N items."""

    @abstractmethod
    def log_likelihood(self, inputs: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x|z) (N,) in nats.

        Args:
            inputs: x, N items.
            z: (N, latent_dim).
            labels: int64 (N,) for a conditional model, else None.
        """

    def forward(self, inputs: Tensor, labels: Labels | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass of training.

        Returns:
            log p(x|z) (N,), KL(q(z|x) ‖ N(0, I)) (N,), μ and log σ² (N, latent_dim) each.
            The evidence lower bound is the first less the second.
        """
        checked = self.check_labels(labels, len(inputs))
        mu, logvar = self.encode(inputs, checked)
        z, kl = functional.reparameterize_kl(mu, logvar)
        return self.log_likelihood(inputs, z, checked), kl, mu, logvar

    def reconstruct(self, inputs: Tensor, labels: Labels | None = None) -> Tensor:
        """N items as the decoder gives them back from their own μ, in eval mode and without gradients."""
        with evaluating(self):
            checked = self.check_labels(labels, len(inputs))
            return self.decode(self.encode(inputs, checked)[0], checked)


class ImageAutoencoder(VariationalAutoencoder, ImageModel):
    """A variational autoencoder of images.

    Args:
        likelihood: one of `aigc_fast.models.likelihood.LIKELIHOODS`.
        **config: as for `ImageModel`.

    Attributes:
        encoder: images to features (N, F).
        code: features and classes (N, F + num_classes) to (N, 2·latent_dim): μ, then log σ².
        decoder: (N, latent_dim + num_classes) to (N, channels, height, width), before the likelihood's squashing.

    Raises:
        ValueError: for an unknown likelihood.
    """

    encoder: nn.Sequential
    code: nn.Module
    decoder: nn.Sequential

    def __init__(self, *, likelihood: str, **config: Any) -> None:
        check_likelihood(likelihood)
        super().__init__(likelihood=likelihood, **config)
        self.likelihood = likelihood
        self.log_scale = nn.Parameter(torch.zeros(())) if likelihood == "gaussian" else None

    def encode(self, inputs: Tensor, labels: Labels | None = None) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each (N, latent_dim), of images (N, channels, height, width) in [-1, 1]."""
        checked = self.check_labels(labels, len(inputs))
        mu, logvar = self.code(self.with_classes(self.encoder(inputs), checked)).chunk(2, dim=1)
        return mu.contiguous(), logvar.contiguous()

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of p(x|z). See `LatentModel.decode`."""
        return pixel_mean(self.decoder(self.with_classes(z, labels)), self.likelihood)

    def log_likelihood(self, inputs: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Summed over pixels. See `VariationalAutoencoder.log_likelihood`."""
        decoded = self.decoder(self.with_classes(z, labels))
        return pixel_log_likelihood(decoded, inputs, self.likelihood, self.log_scale)


class VAE(ImageAutoencoder):
    """A VAE with one hidden layer on each side: pixels → hidden → ReLU → 2·latent_dim; latent_dim → hidden → ReLU →
    pixels.

    Args:
        image_shape: (channels, height, width).
        latent_dim: size of z.
        hidden: width of the hidden layers.
        num_classes: makes the model class-conditional: encoder and decoder see the class.
        likelihood: as for `ImageAutoencoder`.
    """

    name = "vae"

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 20,
        hidden: int = 400,
        num_classes: int | None = None,
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            latent_dim=latent_dim,
            hidden=hidden,
            num_classes=num_classes,
            likelihood=likelihood,
        )
        classes, pixels = num_classes or 0, math.prod(image_shape)
        self.encoder = nn.Sequential(nn.Flatten())
        self.code = nn.Sequential(nn.Linear(pixels + classes, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent_dim))
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + classes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, pixels),
            nn.Unflatten(1, tuple(image_shape)),
        )


class ConvVAE(ImageAutoencoder):
    """A convolutional VAE, for images whose sides are multiples of 4; its latent space is a plane by default.

    Encoder: two Conv 3×3 of stride 2 with ReLU, then Linear. Decoder: Linear and ReLU to a quarter of the side, two
    ConvTranspose 3×3 of stride 2 with ReLU, then Conv 3×3.

    Args:
        image_shape: (channels, height, width).
        latent_dim: size of z.
        width: number of channels of the largest hidden images; smaller ones have twice as many.
        num_classes: makes the model class-conditional: encoder and decoder see the class.
        likelihood: as for `ImageAutoencoder`.

    Raises:
        ValueError: when height or width is not a multiple of 4.
    """

    name = "conv-vae"

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 2,
        width: int = 32,
        num_classes: int | None = None,
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            latent_dim=latent_dim,
            width=width,
            num_classes=num_classes,
            likelihood=likelihood,
        )
        channels, rows, columns = quarter_sides(image_shape)
        classes, units = num_classes or 0, 2 * width * rows * columns
        self.encoder = nn.Sequential(
            fast.Conv2d(channels, width, 3, 2, 1),
            nn.ReLU(),
            fast.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.code = nn.Linear(units + classes, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + classes, units),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, rows, columns)),
            fast.ConvTranspose2d(2 * width, 2 * width, 3, 2, 1, 1),
            nn.ReLU(),
            fast.ConvTranspose2d(2 * width, width, 3, 2, 1, 1),
            nn.ReLU(),
            fast.Conv2d(width, channels, 3, 1, 1),
        )
