"""Training of generators of video: settings and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_fast.models import VideoRNN
from aigc_fast.models.video.cores import PRIORS
from aigc_fast.models.video.rnn import CORES
from aigc_fast.settings import Setting
from aigc_fast.training.config import require
from aigc_fast.training.text import CLIP, WARM_UP
from aigc_fast.training.trainer import SHARE, adam
from aigc_fast.training.vae import VAEConfig, VAETrainer

SCHEDULES = ("linear", "exponential", "inverse-sigmoid", "none")


@dataclass(frozen=True, kw_only=True)
class VideoConfig(VAEConfig):
    """Settings of a `VideoRNN`'s training; see `VAEConfig` and `TrainingConfig` for the others.

    The loss is a VAE's, in nats per frame, with scheduled sampling (Bengio, Vinyals, Jaitly and Shazeer, "Scheduled
    Sampling for Sequence Prediction with Recurrent Neural Networks", 2015): after the given frames, each step reads the
    model's own frame in place of the true one with a probability that grows from 0. Beginnings of clips are learned
    from several frames of each.

    Attributes:
        beginnings: number of frames of each clip, drawn in each step, that a clip could begin with.
        beginnings_rate: the learning rate of the beginnings, as a multiple of the others'.
        schedule: how that probability grows: one of `SCHEDULES`; "none" for true frames only.
        schedule_steps: number of steps after which it has grown to about `own_share`.
        own_share: its limit.
        warm_up: number of steps in which the learning rate grows.
        halving: number of steps in which the learning rate halves afterwards; 0 for a constant one.
        clip: the greatest norm of the gradient, to which a greater one is scaled.

    Raises:
        UserError: for a value out of range.
    """

    beta: float = 0.5
    warmup: int = 300
    beginnings: int = 8
    beginnings_rate: float = 3.0
    schedule: str = "linear"
    schedule_steps: int = 400
    own_share: float = 1.0
    warm_up: int = 50
    halving: int = 400
    clip: float = 50.0
    epochs: int = 10
    log_interval: int = 10
    sample_interval: int = 200
    checkpoint_interval: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        require(self.beginnings >= 1, "beginnings", self.beginnings, "at least 1")
        require(self.schedule_steps >= 1, "schedule_steps", self.schedule_steps, "at least 1")
        require(0 <= self.own_share <= 1, "own_share", self.own_share, "0 to 1")
        for name in ("warm_up", "halving"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("beginnings_rate", "clip"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0 and finite")


class VideoTrainer(VAETrainer):
    """Maximizes the evidence lower bound of clips, with scheduled sampling.

    Args:
        model: a `VideoRNN`.
        config: its settings.
    """

    model: VideoRNN
    config: VideoConfig
    config_type = VideoConfig
    settings = (
        *VAETrainer.settings,
        Setting("core", str, f"What remembers: {' or '.join(CORES)}.", shapes_model=True),
        Setting("prior", str, f"Of the latent core: {' or '.join(PRIORS)}.", shapes_model=True),
        Setting("given", int, "Frames that it is given, and that are always true.", least=1, shapes_model=True),
        Setting(
            "things",
            int,
            "Things that move in clips of nothing.",
            default="as many as digits move in the clips of the package, or 1",
            least=1,
            shapes_model=True,
        ),
        Setting("beginnings", int, "Places in each clip that it could begin with as well.", least=1),
        Setting("beginnings_rate", float, "Learning rate of what clips begin with, as a multiple of the others'."),
        Setting("schedule", str, f"How the model's own frames come in: {', '.join(SCHEDULES)}."),
        Setting("schedule_steps", int, "Steps until they have.", least=1),
        Setting("own_share", float, "The share of them after that."),
        WARM_UP,
        Setting("halving", int, "Steps in which the learning rate halves afterwards; 0 leaves it.", least=0),
        CLIP,
    )
    shown = ("loss", "kl")

    def __init__(self, model: VideoRNN, config: VideoConfig) -> None:
        super().__init__(model, config)
        begun = list(model.beginnings.parameters())
        places = {id(parameter) for parameter in begun}
        others = [parameter for parameter in model.parameters() if id(parameter) not in places]
        groups = [{"params": others}, {"params": begun, SHARE: config.beginnings_rate}]
        self.optimizers["model"] = adam(groups, config.learning_rate, (0.9, 0.999))

    def own_probability(self) -> float:
        """The probability that a step of the next batch, after the given frames, reads the model's own frame."""
        done = self.step_count / self.config.schedule_steps
        grown = {
            "none": 0.0,
            "linear": min(1.0, done),
            "exponential": 1 - 0.01 ** min(1.0, done),
            # Half way in the middle, 0.7 % from either end at the ends.
            "inverse-sigmoid": 1 / (1 + math.exp(10 * (0.5 - min(1.0, done)))),
        }
        return self.config.own_share * grown[self.config.schedule]

    def learning_rate(self) -> float:
        """Adam's learning rate in the next step."""
        warm = min(1.0, (self.step_count + 1) / self.config.warm_up) if self.config.warm_up else 1.0
        halvings = self.step_count / self.config.halving if self.config.halving else 0.0
        return self.config.learning_rate * warm * 2.0**-halvings

    def _step(self, inputs: Tensor, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        probability, rate = self.own_probability(), self.learning_rate()
        # Each is followed by another frame.
        beginnings = torch.randperm(inputs.shape[1] - 1)[: self.config.beginnings].tolist()
        # A step reads the frame before it: the first after the given ones reads the last of those.
        after = range(self.model.given + 1, inputs.shape[1])
        own = [
            step for step, chance in zip(after, torch.rand(len(after)).tolist(), strict=True) if chance < probability
        ]
        loss, values = self._loss(*self.model(inputs, labels, own, beginnings))
        norm = self._descend(loss, rate=rate, clip=self.config.clip)
        return {**values, "own": len(own) / max(1, len(after)), "gradient": norm, "learning_rate": rate}
