"""Training of encoder-decoder transformers: settings and the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.models import Seq2SeqTransformer
from aigc_fast.models.text.seq2seq import Pairs
from aigc_fast.models.text.stacks import ACTIVATIONS
from aigc_fast.settings import Setting
from aigc_fast.training.config import TrainingConfig, require
from aigc_fast.training.losses import smoothed_cross_entropy
from aigc_fast.training.text import CLIP, MEASURE_INTERVAL
from aigc_fast.training.trainer import Trainer


def _inverse_sqrt(step: int, warm_up: int, total: int | None) -> float:
    return (max(1, warm_up) / step) ** 0.5


def _linear(step: int, warm_up: int, total: int | None) -> float:
    if total is None:
        raise UserError("learning_rate_schedule='linear': it falls until the last step: expected steps, got None")
    return max(0.0, (total + 1 - step) / (total + 1 - max(1, warm_up)))


PAPERS = "paper"
SCHEDULES: dict[str, Callable[[int, int, int | None], float]] = {
    "inverse_sqrt": _inverse_sqrt,
    PAPERS: _inverse_sqrt,
    "linear": _linear,
    "constant": lambda step, warm_up, total: 1.0,
}
"""How the learning rate falls once it has warmed up, by name: its share of the peak in a step, from 1, after so many
steps in which it grew, of so many in all. That of "paper" is of Vaswani et al., "Attention is all you need", 2017,
§5.3, the peak too."""


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(TrainingConfig):
    """Settings of an encoder-decoder's training on pairs, as in "Attention is all you need"; see `TrainingConfig` for
    the others.

    Attributes:
        batch_size: pairs per step.
        learning_rate: Adam's at its peak, after the warm-up; ignored with the schedule "paper".
        warm_up: number of steps in which the learning rate grows.
        learning_rate_schedule: how it falls afterwards: "inverse_sqrt"; "linear", to 0 at the last step; "constant"; or
            "paper", which is "inverse_sqrt" with a peak of 1 / √(d_model · warm_up).
        label_smoothing: the share of the target probability that is spread evenly over all tokens, in [0, 1).
        clip: the greatest norm of the gradient, to which a greater one is scaled.
        measure_interval: number of steps between two evaluations of the held-out pairs; 0 for none.

    Raises:
        UserError: for a value out of range.
    """

    epochs: int = 12
    learning_rate: float = 1e-3
    warm_up: int = 200
    learning_rate_schedule: str = "inverse_sqrt"
    label_smoothing: float = 0.1
    clip: float = 1.0
    measure_interval: int = 200
    sample_interval: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0 and finite")
        for name in ("warm_up", "measure_interval"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            self.learning_rate_schedule in SCHEDULES,
            "learning_rate_schedule",
            self.learning_rate_schedule,
            f"one of {', '.join(SCHEDULES)}",
        )
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", smoothing, "0 or more, below 1")


class Seq2SeqTrainer(Trainer):
    """Trains with Adam, with the paper's betas, on the cross-entropy of the targets' tokens with smoothed labels.

    Args:
        model: a `Seq2SeqTransformer`.
        config: its settings.
    """

    config_type = Seq2SeqConfig
    settings = (
        Setting("d_model", int, "Size of a token's vector.", least=1, shapes_model=True),
        Setting("nhead", int, "Heads of the attention, a divisor of d_model.", least=1, shapes_model=True),
        Setting("num_encoder_layers", int, "Layers of the encoder.", least=1, shapes_model=True),
        Setting("num_decoder_layers", int, "Layers of the decoder.", least=1, shapes_model=True),
        Setting("dim_feedforward", int, "Units of the inner layer.", least=1, shapes_model=True),
        Setting("activation", str, f"Of the inner layer: {' or '.join(ACTIVATIONS)}.", shapes_model=True),
        Setting("norm_first", bool, "Norms before the parts of layers, not after them.", shapes_model=True),
        Setting("max_positions", int, "Tokens of a source or target, with its end.", least=2, shapes_model=True),
        Setting("warm_up", int, "Steps in which the learning rate grows.", least=0),
        Setting("learning_rate_schedule", str, f"How the learning rate falls then: {', '.join(SCHEDULES)}."),
        Setting("label_smoothing", float, "The share of probability wanted of all tokens alike.", least=0, most=1),
        CLIP,
        MEASURE_INTERVAL,
    )
    shown = ("loss", "held_out")

    def __init__(self, model: Seq2SeqTransformer, config: Seq2SeqConfig) -> None:
        super().__init__(model, config)
        papers = (model.config["d_model"] * max(1, config.warm_up)) ** -0.5
        self.peak = papers if config.learning_rate_schedule == PAPERS else config.learning_rate
        self.optimizers["model"] = torch.optim.Adam(
            model.parameters(), lr=self.peak, betas=(0.9, 0.98), eps=1e-9, fused=True
        )

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate in the current step."""
        step, warm_up = self.step_count + 1, self.config.warm_up
        if step < warm_up:
            return self.peak * step / warm_up
        return self.peak * SCHEDULES[self.config.learning_rate_schedule](step, warm_up, self.total_steps)

    def _step(self, inputs: Pairs, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        hidden = self.model.hidden(inputs.sources, inputs.of_sources, inputs.inputs, inputs.of_inputs)
        loss, nats = smoothed_cross_entropy(self.model.logits(hidden), inputs.answers, self.config.label_smoothing)
        rate = self.learning_rate
        norm = self._descend(loss, rate=rate, clip=self.config.clip)
        perplexity = self.ranks.mean(nats).exp()
        return {"loss": loss.detach(), "perplexity": perplexity, "gradient": norm, "learning_rate": rate}
