"""Two models as a PyTorch user writes them: nothing here comes from aigc_fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 100
BATCH = 64

SampleAndKl = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class StockDCGAN(nn.Module):
    """The DCGAN for 28×28 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 128 * 7 * 7, bias=False),
            nn.BatchNorm1d(128 * 7 * 7),
            nn.LeakyReLU(0.2),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 5, 2, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(64, 1, 5, 2, 2, 1, bias=False),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 64, 5, 1, 2),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Conv2d(64, 128, 5, 2, 2),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(128 * 14 * 14, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, 100) to the discriminator's logits (N, 1) of the images."""
        return self.discriminator(self.generator(z))


class StockConvVAE(nn.Module):
    """The convolutional VAE with a 2-d latent."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 4),
        )
        self.decoder = nn.Sequential(
            nn.Linear(2, 64 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, 1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 3, 1, 1),
        )

    def forward(self, images: Tensor, sample_and_kl: SampleAndKl) -> Tensor:
        """The negative evidence lower bound of images (N, 1, 28, 28) in [-1, 1], summed."""
        mu, logvar = self.encoder(images).chunk(2, dim=1)
        z, kl = sample_and_kl(mu, logvar)
        return F.binary_cross_entropy_with_logits(self.decoder(z), (images + 1) / 2, reduction="sum") + kl.sum()


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """z = μ + σ·ε, and KL(N(μ, σ²) ‖ N(0, I)) per row, in plain PyTorch."""
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(dim=1)


def gan_losses(model: StockDCGAN, images: Tensor, z: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The discriminator's loss, and what computes the generator's (non-saturating)."""
    fake = model.generator(z)
    real_logits, fake_logits = model.discriminator(images), model.discriminator(fake.detach())
    loss = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    loss = loss + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))

    def generator_loss() -> Tensor:
        logits = model.discriminator(fake)
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    return loss, generator_loss


def gan_step(model: StockDCGAN, optimiser: torch.optim.Optimizer, images: Tensor) -> None:
    """One training step of both networks."""
    optimiser.zero_grad()
    loss, generator_loss = gan_losses(model, images, torch.randn(len(images), LATENT, device=images.device))
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    generator_loss().backward()
    optimiser.step()


def vae_step(
    model: StockConvVAE, optimiser: torch.optim.Optimizer, images: Tensor, sampler: SampleAndKl = sample_and_kl
) -> None:
    """One training step."""
    optimiser.zero_grad()
    model(images, sampler).backward()
    optimiser.step()
