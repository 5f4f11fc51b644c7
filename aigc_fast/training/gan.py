"""Training of GANs: settings and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aigc_fast.models import GAN
from aigc_fast.settings import Setting
from aigc_fast.training.config import TrainingConfig, require
from aigc_fast.training.losses import LOSSES, diversity, gradient_penalty
from aigc_fast.training.trainer import Trainer, adam

_WGAN_GP = {"learning_rate": 1e-4, "beta1": 0.0, "beta2": 0.9, "critic_steps": 5}
"""Gulrajani et al. 2017, algorithm 1."""


@dataclass(frozen=True, kw_only=True)
class GANConfig(TrainingConfig):
    """Settings of a GAN's training; see `TrainingConfig` for the others.

    Attributes:
        loss: a name of `LOSSES`.
        learning_rate: Adam's, for the generator.
        discriminator_learning_rate: Adam's, for the discriminator; None for the generator's.
        beta1: Adam's.
        beta2: Adam's.
        critic_steps: number of discriminator steps per generator step.
        gradient_penalty: weight of WGAN-GP's penalty.
        average: decay of the moving average of the generator's weights that samples are drawn from; 0 for none
            (Yazıcı et al., "The Unusual Effectiveness of Averaging in GAN Training", 2018).

    Raises:
        UserError: for a value out of range.
    """

    loss: str = "non-saturating"
    learning_rate: float = 5e-4
    discriminator_learning_rate: float | None = None
    beta1: float = 0.5
    beta2: float = 0.999
    critic_steps: int = 1
    gradient_penalty: float = 10.0
    average: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.loss in LOSSES, "loss", self.loss, f"one of {', '.join(LOSSES)}")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0 and finite")
        rate = self.discriminator_learning_rate
        require(rate is None or 0 < rate < math.inf, "discriminator_learning_rate", rate, "above 0 and finite")
        for name in ("beta1", "beta2", "average"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 to below 1")
        require(self.critic_steps >= 1, "critic_steps", self.critic_steps, "at least 1")
        require(0 <= self.gradient_penalty < math.inf, "gradient_penalty", self.gradient_penalty, "0 or more, finite")

    @classmethod
    def suiting(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `TrainingConfig.suiting`: WGAN-GP has its own."""
        return _WGAN_GP if settings.get("loss") == "wgan-gp" else {}


class GANTrainer(Trainer):
    """Adversarial training: the discriminator each step, the generator every `critic_steps`.

    The discriminator's parameters are frozen while the generator's gradients are computed.

    Args:
        model: a GAN.
        config: its settings.
    """

    config_type = GANConfig
    settings = (
        Setting("loss", str, f"One of: {', '.join(LOSSES)}."),
        Setting(
            "critic_steps",
            int,
            "Discriminator steps for each generator step.",
            default=f"{GANConfig.critic_steps}; {_WGAN_GP['critic_steps']} for wgan-gp",
            least=1,
        ),
        Setting("gradient_penalty", float, "Weight of wgan-gp's gradient penalty."),
        Setting("spectral_norm", bool, "Bound the discriminator's slope.", shapes_model=True),
    )
    shown = ("d_loss", "g_loss")

    def __init__(self, model: GAN, config: GANConfig) -> None:
        super().__init__(model, config)
        self.loss = LOSSES[config.loss]
        betas = (config.beta1, config.beta2)
        rate = config.discriminator_learning_rate or config.learning_rate
        self.optimizers["generator"] = adam(model.generator.parameters(), config.learning_rate, betas)
        self.optimizers["discriminator"] = adam(model.discriminator.parameters(), rate, betas)
        self.average = None
        if config.average:
            average = get_ema_multi_avg_fn(config.average)
            self.average = AveragedModel(model.generator, multi_avg_fn=average, use_buffers=True)
            self.modules["average"] = self.average

    def first_step(self, optimizer: str) -> int:
        """See `Trainer.first_step`."""
        return self.config.critic_steps if optimizer == "generator" else 1

    def _step(self, images: Tensor, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        trains_generator = (self.step_count + 1) % self.config.critic_steps == 0
        with torch.set_grad_enabled(trains_generator):
            fake = self.model.decode(self.model.prior(len(images)), labels)
        values = self._step_discriminator(images, fake.detach(), labels)
        if trains_generator:
            values["g_loss"] = self._step_generator(fake, labels)
        values["diversity"] = self._diversity(fake, images)
        return values

    def _step_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> dict[str, Tensor | float]:
        discriminator = self.model.discriminator
        real_logits, fake_logits = discriminator(real, labels), discriminator(fake, labels)
        loss = self.loss.discriminator(real_logits, fake_logits)
        values = {"d_loss": loss.detach(), "d_real": real_logits.detach().mean(), "d_fake": fake_logits.detach().mean()}
        if self.config.loss == "wgan-gp":
            penalty = gradient_penalty(lambda between: discriminator(between, labels), real, fake)
            values["penalty"] = penalty.detach()
            loss = loss + self.config.gradient_penalty * penalty
        self._descend(loss, "discriminator")
        return values

    def _diversity(self, fake: Tensor, real: Tensor) -> Tensor | float:
        total = self.ranks.total(len(real))
        # In float32: PyTorch has no distances in 16 bits.
        fake, real = (self.ranks.whole(images.detach().float(), total) for images in (fake, real))
        return diversity(fake, real) if total > 1 else 1.0

    def _step_generator(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        with _frozen(self.model.discriminator):
            loss = self.loss.generator(self.model.discriminator(fake, labels))
            self._descend(loss, "generator")
        if self.average is not None:
            self.average.update_parameters(self.model.generator)
        return loss.detach()

    @contextmanager
    def sampling(self) -> Iterator[GAN]:
        """See `Trainer.sampling`: with the averaged generator, when there is one."""
        live = self.model.generator
        if self.average is not None:
            self.model.generator = self.average.module
        try:
            yield self.model
        finally:
            self.model.generator = live

    def finish(self) -> None:
        """See `Trainer.finish`: with the averaged generator, when there is one."""
        super().finish()
        if self.average is not None:
            self.model.generator.load_state_dict(self.average.module.state_dict())


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
