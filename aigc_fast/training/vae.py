"""Training of VAEs: settings and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aigc_fast import functional
from aigc_fast.models import VariationalAutoencoder
from aigc_fast.models.likelihood import LIKELIHOODS
from aigc_fast.settings import Setting
from aigc_fast.training.config import TrainingConfig, require
from aigc_fast.training.losses import free_bits_kl
from aigc_fast.training.trainer import Trainer, adam


@dataclass(frozen=True, kw_only=True)
class VAEConfig(TrainingConfig):
    """Settings of a VAE's training; see `TrainingConfig` for the others.

    The loss is −E[log p(x|z)] + beta·KL(q(z|x) ‖ N(0, I)), in nats per item.

    Attributes:
        learning_rate: Adam's.
        beta: weight of the KL divergence (Higgins et al., "beta-VAE", 2017).
        warmup: number of steps in which that weight grows from 0 (Bowman et al., "Generating Sentences from a
            Continuous Space", 2016).
        free_bits: nats of KL divergence of each latent dimension that are not penalized.

    Raises:
        UserError: for a value out of range.
    """

    learning_rate: float = 2e-3
    beta: float = 1.0
    warmup: int = 0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0 and finite")
        for name in ("beta", "warmup", "free_bits"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, finite")


class VAETrainer(Trainer):
    """Maximizes the evidence lower bound, with a weight on the KL divergence, part of which may be free.

    Args:
        model: a VAE.
        config: its settings.
    """

    config_type = VAEConfig
    settings = (
        Setting(
            "likelihood",
            str,
            f"How output and image are compared: {' or '.join(LIKELIHOODS)}.",
            default=LIKELIHOODS[0],
            shapes_model=True,
        ),
        Setting("beta", float, "Weight of the KL divergence."),
        Setting("warmup", int, "Steps over which that weight grows from 0.", least=0),
        Setting("free_bits", float, "Nats of KL that each latent dimension has for free."),
    )
    shown = ("loss", "kl")

    def __init__(self, model: VariationalAutoencoder, config: VAEConfig) -> None:
        super().__init__(model, config)
        self.optimizers["model"] = adam(model.parameters(), config.learning_rate, (0.9, 0.999))

    def beta(self) -> float:
        """The weight of the KL divergence in the next step."""
        if not self.config.warmup:
            return self.config.beta
        return self.config.beta * min(1.0, (self.step_count + 1) / self.config.warmup)

    def _step(self, inputs: Any, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        loss, values = self._loss(*self.model(inputs, labels))
        self._descend(loss)
        return values

    def _loss(
        self, log_likelihood: Tensor, kl: Tensor, mu: Tensor, logvar: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """What to descend, and the values to show, of what the model gives."""
        reconstruction, divergence, beta = -log_likelihood.mean(), kl.mean(), self.beta()
        counted = divergence
        if self.config.free_bits:
            rows = self.ranks.total(len(mu)) * self.ranks.weight
            per_dimension = functional.kl_standard_normal(mu.t(), logvar.t()) / rows
            counted = free_bits_kl(self.ranks.mean(per_dimension), self.config.free_bits)
        loss = reconstruction + beta * counted
        values = {
            "loss": loss.detach(),
            "reconstruction": reconstruction.detach(),
            "kl": divergence.detach(),
            "elbo": -(reconstruction + divergence).detach(),
            "beta": beta,
        }
        return loss, values
