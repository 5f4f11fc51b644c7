"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from aigc_fast.errors import UserError
from aigc_fast.models import GAN, LatentModel, SoundModel
from aigc_fast.training.losses import LOSSES


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r}: expected {expected}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every model's training takes.

    Attributes:
        epochs: passes over the data.
        steps: batches in all, instead of epochs.
        batch_size: images or sounds a batch; a data set that is smaller is one batch.
        seed: of the order of the data, the noise and the samples.
        shift: each image is moved at random by up to so many pixels; 0 for sounds.
        log_interval: steps between two rows of the log, each the mean of its steps.
        sample_interval: steps between two files of samples; 0 for none.
        checkpoint_interval: steps between two checkpoints; 0 for one at the end alone.
        keep_checkpoints: how many checkpoints stay; older ones go.
        tensorboard: also writes losses and pictures of samples for TensorBoard.

    Raises:
        UserError: on a value out of range.
    """

    epochs: int = 50
    steps: int | None = None
    batch_size: int = 64
    seed: int = 42
    shift: int = 0
    log_interval: int = 10
    sample_interval: int = 100
    checkpoint_interval: int = 500
    keep_checkpoints: int = 3
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_interval", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("shift", "sample_interval", "checkpoint_interval"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2⁶³ − 1")


@dataclass(frozen=True, kw_only=True)
class GANConfig(TrainingConfig):
    """Training of a GAN.

    Attributes:
        loss: a name of `LOSSES`.
        learning_rate: Adam's, for the generator.
        discriminator_learning_rate: Adam's, for the discriminator; None takes the generator's.
        beta1: Adam's.
        beta2: Adam's.
        critic_steps: discriminator steps for each generator step.
        gradient_penalty: weight of WGAN-GP's penalty.
        average: decay of the moving average of the generator's weights that samples are drawn from; 0 for none
            (Yazıcı et al., "The Unusual Effectiveness of Averaging in GAN Training", 2018).

    Raises:
        UserError: on a value out of range.
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
        _require(self.loss in LOSSES, "loss", self.loss, f"one of {', '.join(LOSSES)}")
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0 and finite")
        rate = self.discriminator_learning_rate
        _require(rate is None or 0 < rate < math.inf, "discriminator_learning_rate", rate, "above 0 and finite")
        for name in ("beta1", "beta2", "average"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 to below 1")
        _require(self.critic_steps >= 1, "critic_steps", self.critic_steps, "at least 1")
        _require(0 <= self.gradient_penalty < math.inf, "gradient_penalty", self.gradient_penalty, "0 or more, finite")


@dataclass(frozen=True, kw_only=True)
class VAEConfig(TrainingConfig):
    """Training of a VAE: the loss is −E[log p(x|z)] + beta·KL(q(z|x) ‖ N(0, I)), in nats an item.

    Attributes:
        learning_rate: Adam's.
        beta: weight of the KL (Higgins et al., "beta-VAE", 2017).
        warmup: steps over which that weight grows from 0 (Bowman et al., "Generating Sentences from a Continuous
            Space", 2016).
        free_bits: nats of KL that each latent dimension has for free.

    Raises:
        UserError: on a value out of range.
    """

    learning_rate: float = 2e-3
    beta: float = 1.0
    warmup: int = 0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0 and finite")
        for name in ("beta", "warmup", "free_bits"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, finite")


_WGAN_GP = {"learning_rate": 1e-4, "beta1": 0.0, "beta2": 0.9, "critic_steps": 5}
"""Gulrajani et al. 2017, algorithm 1."""
SOUND_SETTINGS = {"batch_size": 16, "epochs": 50, "learning_rate": 3e-3, "warmup": 120}
"""Defaults for models of sounds."""


def default_config(model: LatentModel | type[LatentModel], **settings: Any) -> TrainingConfig:
    """The configuration that suits a model and, for a GAN, the loss; `settings` come before its defaults.

    Args:
        model: a model or its class.
        **settings: fields of `GANConfig` or `VAEConfig`; those that are None keep their defaults.

    Raises:
        UserError: on a setting that the model's training does not have, or a value out of range.
    """
    cls = model if isinstance(model, type) else type(model)
    config = GANConfig if issubclass(cls, GAN) else VAEConfig
    chosen = {name: value for name, value in settings.items() if value is not None}
    known = {field.name for field in fields(config)}
    for name in chosen:
        if name not in known:
            raise UserError(f"{name}: training of {cls.name} has no such setting")
    return config(**{**_defaults(cls, chosen.get("loss")), **chosen})


def _defaults(cls: type[LatentModel], loss: str | None) -> dict[str, Any]:
    if issubclass(cls, SoundModel):
        return SOUND_SETTINGS
    return _WGAN_GP if loss == "wgan-gp" else {}
