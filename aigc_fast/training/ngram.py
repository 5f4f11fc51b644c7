"""Training of n-gram models: counting, in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from aigc_fast.metrics import perplexity
from aigc_fast.settings import Setting
from aigc_fast.training.config import TrainingConfig
from aigc_fast.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class NGramConfig(TrainingConfig):
    """Settings of an n-gram model's training, which is a single step over all documents; see `TrainingConfig`.

    Raises:
        UserError: for a value out of range.
    """

    epochs: int = 1


class NGramTrainer(Trainer):
    """Fits the model to all documents at once.

    Args:
        model: an `NGram`.
        config: its settings.
    """

    config_type = NGramConfig
    settings = (Setting("order", int, "Characters, or bytes, of the longest n-grams.", least=1, shapes_model=True),)
    shown = ("bits", "held_out")

    def _step(self, inputs: Sequence[str], labels: Tensor | None) -> Mapping[str, float]:
        self.model.fit(inputs)
        return {"bits": perplexity(self.model, inputs).bits_per_character}
