"""What generators and discriminators minimise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from aigc_fast import functional


class AdversarialLoss(NamedTuple):
    """The losses of a generator and a discriminator, as functions of the discriminator's logits (N,).

    Attributes:
        discriminator: takes the logits of real and of generated images and returns the discriminator's loss.
        generator: takes the logits of generated images and returns the generator's loss.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def cross_entropy_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """−E[log D(x)] − E[log(1 − D(G(z)))] with D = sigmoid(logit)."""
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """E[log(1 − D(G(z)))] (Goodfellow et al., "Generative Adversarial Nets", 2014, eq. 1)."""
    return -softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """−E[log D(G(z))] (Goodfellow et al. 2014, §3): its gradient does not fade where the discriminator is sure."""
    return softplus(-fake).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 − logit of real)] + E[max(0, 1 + logit of fake)] (Lim and Ye, "Geometric GAN", 2017)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E[critic of fake] − E[critic of real] (Arjovsky et al., "Wasserstein GAN", 2017)."""
    return fake.mean() - real.mean()


def negative_mean(fake: Tensor) -> Tensor:
    """−E[logit of fake], the generator's side of the hinge and Wasserstein games."""
    return -fake.mean()


LOSSES = {
    "minimax": AdversarialLoss(cross_entropy_discriminator, minimax_generator),
    "non-saturating": AdversarialLoss(cross_entropy_discriminator, non_saturating_generator),
    "hinge": AdversarialLoss(hinge_discriminator, negative_mean),
    "wgan-gp": AdversarialLoss(wasserstein_discriminator, negative_mean),
}
"""The games by the name that configurations and the command line use."""


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E[(‖∇critic(x̂)‖ − 1)²], x̂ between real and fake images; differentiable with respect to the critic's parameters.

    Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, eq. 3.

    Args:
        critic: maps images to logits (N,), each depending only on its own image.
        real: (N, C, H, W).
        fake: (N, C, H, W).

    Returns:
        A scalar.
    """
    fraction = functional.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
    between = (real + fraction * (fake.detach() - real)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of classes of which all others, and they themselves, are wanted a little.

    Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, §7; as
    `torch.nn.functional.cross_entropy` has it with `label_smoothing`.

    Args:
        logits: (N, classes).
        targets: int64 (N,).
        smoothing: the share of the probability that is wanted of all classes alike, in [0, 1).

    Returns:
        The loss, and what it is without smoothing, which has no gradient.
    """
    logarithms = logits.log_softmax(-1)
    nats = torch.nn.functional.nll_loss(logarithms, targets)
    loss = (1 - smoothing) * nats - smoothing * logarithms.mean() if smoothing else nats
    return loss, nats.detach()


def diversity(fake: Tensor, real: Tensor) -> Tensor:
    """How far generated images are from each other, relative to real ones: a sign of mode collapse.

    The mean distance from a generated image to the nearest other one, divided by the same for real images. About 1 if
    they vary as much as the data, near 0 if the generator repeats itself.

    Args:
        fake: (N, C, H, W), N at least 2.
        real: (N, C, H, W), equally many, as the nearest of many is nearer.

    Returns:
        A scalar.
    """
    return _spacing(fake) / _spacing(real).clamp_min(1e-12)


def _spacing(images: Tensor) -> Tensor:
    points = images.detach().flatten(1).float()  # PyTorch has no distances in 16 bits
    distances = torch.cdist(points, points)
    return distances.fill_diagonal_(torch.inf).min(dim=1).values.mean()


def free_bits_kl(kl: Tensor, free_bits: float) -> Tensor:
    """Σ over latent dimensions of max(free_bits, KL of the dimension averaged over the batch), in nats.

    Keeps dimensions from falling silent (Kingma et al., "Improving Variational Inference with Inverse Autoregressive
    Flow", 2016, eq. 15).

    Args:
        kl: (latent_dim,), the batch's mean for each dimension.
        free_bits: nats for each dimension.
    """
    return kl.clamp_min(free_bits).sum()
