"""One step of training, for each family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aigc_fast import functional
from aigc_fast.models import GAN, LatentModel, VariationalAutoencoder
from aigc_fast.training.config import GANConfig, TrainingConfig, VAEConfig
from aigc_fast.training.losses import LOSSES, diversity, free_bits_kl, gradient_penalty


class Trainer(ABC):
    """What changes from step to step, and the step.

    Attributes:
        model: the model in training.
        modules: everything with weights or buffers to keep in a checkpoint, by name.
        optimizers: by name.
        step_count: steps done.
        shown: names of the values that a progress bar has room for.
    """

    shown: ClassVar[tuple[str, ...]]

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.step_count = 0

    def step(self, inputs: Any, labels: Tensor | None = None) -> dict[str, float]:
        """Trains on one batch.

        Args:
            inputs: N items as the model's `forward` takes them: images (N, C, H, W) in [-1, 1], or sounds (N, T).
            labels: int64 (N,), for a conditional model.

        Returns:
            Losses and other measures by name.
        """
        self.model.train()
        values = self._step(inputs, labels)
        self.step_count += 1
        return {name: float(value) for name, value in values.items()}

    def first_step(self, optimizer: str) -> int:
        """The step in which an optimizer first moves its weights, from 1."""
        return 1

    @abstractmethod
    def _step(self, inputs: Any, labels: Tensor | None) -> Mapping[str, Tensor | float]: ...

    @contextmanager
    def sampling(self) -> Iterator[LatentModel]:
        """The model as it should be sampled and saved, for the length of the block."""
        yield self.model

    def finish(self) -> None:
        """Leaves the model as it should be sampled, in eval mode; training can't go on from there."""
        self.model.eval()


def _adam(parameters: Iterator[nn.Parameter], rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)


class GANTrainer(Trainer):
    """Adversarial training: the discriminator each step, the generator every `critic_steps`.

    The discriminator's parameters are frozen while the generator's gradients are computed.

    Args:
        model: a GAN.
        config: its settings.
    """

    shown = ("d_loss", "g_loss")

    def __init__(self, model: GAN, config: GANConfig) -> None:
        super().__init__(model)
        self.config = config
        self.loss = LOSSES[config.loss]
        betas = (config.beta1, config.beta2)
        rate = config.discriminator_learning_rate or config.learning_rate
        self.optimizers["generator"] = _adam(model.generator.parameters(), config.learning_rate, betas)
        self.optimizers["discriminator"] = _adam(model.discriminator.parameters(), rate, betas)
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
        values["diversity"] = diversity(fake, images) if len(images) > 1 else 1.0
        return values

    def _step_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> dict[str, Tensor | float]:
        discriminator, optimizer = self.model.discriminator, self.optimizers["discriminator"]
        real_logits, fake_logits = discriminator(real, labels), discriminator(fake, labels)
        loss = self.loss.discriminator(real_logits, fake_logits)
        values = {"d_loss": loss.detach(), "d_real": real_logits.detach().mean(), "d_fake": fake_logits.detach().mean()}
        if self.config.loss == "wgan-gp":
            penalty = gradient_penalty(lambda between: discriminator(between, labels), real, fake)
            values["penalty"] = penalty.detach()
            loss = loss + self.config.gradient_penalty * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return values

    def _step_generator(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        optimizer = self.optimizers["generator"]
        with _frozen(self.model.discriminator):
            loss = self.loss.generator(self.model.discriminator(fake, labels))
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
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


class VAETrainer(Trainer):
    """Maximises the evidence lower bound, with a weight and a free allowance on the KL.

    Args:
        model: a VAE.
        config: its settings.
    """

    shown = ("loss", "kl")

    def __init__(self, model: VariationalAutoencoder, config: VAEConfig) -> None:
        super().__init__(model)
        self.config = config
        self.optimizers["model"] = _adam(model.parameters(), config.learning_rate, (0.9, 0.999))

    def beta(self) -> float:
        """The weight of the KL in the coming step."""
        if not self.config.warmup:
            return self.config.beta
        return self.config.beta * min(1.0, (self.step_count + 1) / self.config.warmup)

    def _step(self, inputs: Any, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        log_likelihood, kl, mu, logvar = self.model(inputs, labels)
        reconstruction, divergence, beta = -log_likelihood.mean(), kl.mean(), self.beta()
        counted = divergence
        if self.config.free_bits:
            per_dimension = functional.kl_standard_normal(mu.t(), logvar.t()) / len(mu)
            counted = free_bits_kl(per_dimension, self.config.free_bits)
        loss = reconstruction + beta * counted
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {
            "loss": loss.detach(),
            "reconstruction": reconstruction.detach(),
            "kl": divergence.detach(),
            "elbo": -(reconstruction + divergence).detach(),
            "beta": beta,
        }


def make_trainer(model: LatentModel, config: TrainingConfig) -> Trainer:
    """The trainer of a model's family.

    Raises:
        TypeError: when model and configuration are of different families.
    """
    if isinstance(model, GAN) and isinstance(config, GANConfig):
        return GANTrainer(model, config)
    if isinstance(model, VariationalAutoencoder) and isinstance(config, VAEConfig):
        return VAETrainer(model, config)
    raise TypeError(f"config: {type(config).__name__} does not suit a {type(model).__name__}; see default_config")
