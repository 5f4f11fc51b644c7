"""How a decoder's output and pixels are compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LIKELIHOODS = ("bernoulli", "gaussian")
"""\"bernoulli\": each pixel, scaled to [0, 1], is the success of a coin whose logit the decoder gives; \"gaussian\":
each pixel in [-1, 1] is normal about the tanh of the decoder's output, with one standard deviation for all, learned
along (Rybkin et al., "Simple and Effective VAE Training with Calibrated Decoders", 2021)."""

_LOG_2PI = math.log(2 * math.pi)


def check_likelihood(likelihood: str) -> None:
    """Refuses, by ValueError, what is none of `LIKELIHOODS`."""
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r}: expected one of {', '.join(LIKELIHOODS)}")


STEEPNESS = {"bernoulli": 2.0, "gaussian": 1.0}
"""s, of which the mean of a pixel is tanh(decoded / s)."""


def pixel_mean(decoded: Tensor, likelihood: str) -> Tensor:
    """The mean of the pixels, in [-1, 1]."""
    # 2·sigmoid(a) − 1 = tanh(a / 2): the Bernoulli mean scaled from [0, 1] to [-1, 1].
    return torch.tanh(decoded / STEEPNESS[likelihood])


def pixel_log_likelihood(decoded: Tensor, pixels: Tensor, likelihood: str, log_scale: Tensor | None) -> Tensor:
    """log p of N images, in nats, summed over their pixels; for "bernoulli" the cross-entropy of grey levels.

    Args:
        decoded: (N, ...).
        pixels: of the same shape, in [-1, 1].
        likelihood: one of `LIKELIHOODS`.
        log_scale: (), the logarithm of the standard deviation for "gaussian"; else None.

    Returns:
        (N,).
    """
    if likelihood == "bernoulli":
        loss = nn.functional.binary_cross_entropy_with_logits(decoded, (pixels + 1) / 2, reduction="none")
        return -loss.flatten(1).sum(1)
    squares = (pixels - pixel_mean(decoded, likelihood)).square().flatten(1).sum(1)
    count = math.prod(pixels.shape[1:])
    return -0.5 * squares * torch.exp(-2 * log_scale) - count * (log_scale + 0.5 * _LOG_2PI)
