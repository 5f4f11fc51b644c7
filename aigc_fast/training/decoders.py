"""Training of transformers that tell the next token: settings and the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aigc_fast.media.text import Windows
from aigc_fast.models import DecoderModel
from aigc_fast.settings import Setting
from aigc_fast.training.config import TrainingConfig, require
from aigc_fast.training.text import CLIP, HALF_LIFE, MEASURE_INTERVAL, NUM_LAYERS, WARM_UP
from aigc_fast.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrainingConfig):
    """Training of a transformer by windows of the text, as long as its context.

    Attributes:
        batch_size: how many windows a step reads.
        learning_rate: Adam's, once it has warmed up.
        warm_up: steps in which the learning rate grows to it.
        half_life: passes over the text in which it halves afterwards; 0 leaves it.
        weight_decay: of the matrices, as a share of the learning rate.
        clip: the largest norm of the gradient; a longer one is shortened to it.
        sharded: of several processes, leave each a part of the weights, gradients and Adam's state instead of all.
        measure_interval: steps between two measurements of the held-out text; 0 for none.

    Raises:
        UserError: for a value out of range.
    """

    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 2e-3
    warm_up: int = 100
    half_life: float = 5.0
    weight_decay: float = 0.1
    clip: float = 1.0
    sharded: bool = False
    measure_interval: int = 200
    sample_interval: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0 and finite")
        for name in ("warm_up", "half_life", "weight_decay", "measure_interval"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, finite")


class DecoderTrainer(Trainer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) on the
    cross-entropy of the next token, with the gradient clipped.

    Args:
        model: a `DecoderModel`.
        config: its settings.
    """

    config_type = DecoderConfig
    settings = (
        NUM_LAYERS,
        Setting("num_heads", int, "Of the attention, a divisor of the hidden units.", least=1, shapes_model=True),
        Setting("context", int, "Tokens that it sees at once.", least=2, shapes_model=True),
        WARM_UP,
        HALF_LIFE,
        Setting("weight_decay", float, "By which matrices shrink, as a share of the learning rate.", least=0),
        CLIP,
        Setting("sharded", bool, "Under torchrun, keep a part of weights and Adam's state in each process (FSDP2)."),
        MEASURE_INTERVAL,
    )
    shown = ("loss", "bits", "held_out")

    def __init__(self, model: DecoderModel, config: DecoderConfig) -> None:
        super().__init__(model, config)
        if config.sharded and self.ranks.count > 1:
            self._share_out()
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizers["model"] = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    def learning_rate(self, passes: float) -> float:
        """Adam's in the step under way, after so many passes over the text."""
        warm = min(1.0, (self.step_count + 1) / self.config.warm_up) if self.config.warm_up else 1.0
        halvings = passes / self.config.half_life if self.config.half_life else 0.0
        return self.config.learning_rate * warm * 2.0**-halvings

    def _step(self, inputs: Windows, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        logits = self.model(inputs.tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), inputs.tokens[:, 1:].flatten())
        rate = self.learning_rate(inputs.passes)
        norm = self._descend(loss, rate=rate, clip=self.config.clip)
        bits = loss.detach() / math.log(2) / inputs.bytes
        return {"loss": loss.detach(), "bits": bits, "gradient": norm, "learning_rate": rate}
