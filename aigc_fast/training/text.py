"""Training of character models and n-grams: settings and the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.media.text import Chunk
from aigc_fast.models import CharRNN
from aigc_fast.models.text.char_rnn import CELLS, ELMAN, State
from aigc_fast.runtime.ranks import Ranks
from aigc_fast.settings import Setting
from aigc_fast.training.config import TrainingConfig, require
from aigc_fast.training.trainer import Trainer, adam

# Other models of text have them, too.
NUM_LAYERS = Setting("num_layers", int, "Layers.", least=1, shapes_model=True)
HALF_LIFE = Setting("half_life", float, "Passes over the text in which the learning rate halves; 0 leaves it.", least=0)
WARM_UP = Setting("warm_up", int, "Steps in which the learning rate grows.", least=0)
CLIP = Setting("clip", float, "The largest norm of the gradient.")
MEASURE_INTERVAL = Setting(
    "measure_interval", int, "Steps between two measurements of held-out text; 0 for none.", least=0
)


@dataclass(frozen=True, kw_only=True)
class CharRNNConfig(TrainingConfig):
    """Settings of a character model's training by truncated backpropagation through time; see `TrainingConfig` for the
    others.

    Attributes:
        batch_size: number of positions in the text that are read in parallel.
        chunk: number of tokens that each reads in a step, through which gradients flow; the state carries over to the
            next step.
        learning_rate: Adam's.
        half_life: number of passes over the text in which the learning rate halves; 0 for a constant one.
        clip: the greatest norm of the gradient, to which a greater one is scaled.
        measure_interval: number of steps between two evaluations of the held-out text; 0 for none.

    Raises:
        UserError: for a value out of range.
    """

    epochs: int = 24
    batch_size: int = 32
    chunk: int = 64
    learning_rate: float = 5e-3
    half_life: float = 8.0
    clip: float = 1.0
    measure_interval: int = 500
    sample_interval: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0 and finite")
        for name in ("half_life", "measure_interval"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, finite")


class Carried(nn.Module):
    """The state between two chunks, of each place that reads.

    Args:
        state: before a document, as a model has it for that many places.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.is_pair = isinstance(state, tuple)
        for name, part in zip(("hidden", "cell"), state if self.is_pair else (state,), strict=False):
            self.register_buffer(name, part)

    def of(self, before: Tensor) -> State:
        """The state that parts begin with."""
        return self._mapped(lambda part: torch.cat([part, torch.zeros_like(part[:, :1])], dim=1)[:, before])

    def keep(self, state: State, after: Tensor, places: int, ranks: Ranks) -> None:
        """Keeps the state after parts, without its gradient, of all places in every process."""
        found = state if self.is_pair else (state,)
        for part, new in zip(self.buffers(), found, strict=True):
            part[:, :places] = ranks.whole(new.detach()[:, after], places, dim=1)

    def _mapped(self, change: Any) -> State:
        found = tuple(map(change, self.buffers()))
        return found if self.is_pair else found[0]


class CharRNNTrainer(Trainer):
    """Trains with Adam on the cross-entropy of the next token, with gradients clipped.

    Args:
        model: a `CharRNN`.
        config: its settings.
    """

    config_type = CharRNNConfig
    settings = (
        Setting("cell", str, f"What remembers: {', '.join(CELLS)}, or {ELMAN}, the plainest.", shapes_model=True),
        NUM_LAYERS,
        Setting("embedding", int, "Size of a token's vector.", least=1, shapes_model=True),
        Setting("tied", bool, "Let input and output share the tokens' vectors.", shapes_model=True),
        Setting("chunk", int, "Tokens that the gradient goes back through.", least=1),
        HALF_LIFE,
        CLIP,
        MEASURE_INTERVAL,
    )
    shown = ("bits", "held_out")

    def __init__(self, model: CharRNN, config: CharRNNConfig) -> None:
        super().__init__(model, config)
        self.optimizers["model"] = adam(model.parameters(), config.learning_rate, (0.9, 0.99))
        self.carried = Carried(model.init_state(config.batch_size))
        self.modules["carried"] = self.carried

    def learning_rate(self, passes: float) -> float:
        """Adam's learning rate after a number of passes over the text."""
        halvings = passes / self.config.half_life if self.config.half_life else 0
        return self.config.learning_rate * 2.0**-halvings

    def _step(self, inputs: Chunk, labels: Tensor | None) -> Mapping[str, Tensor | float]:
        logits, state = self.model(inputs.tokens, self.carried.of(inputs.before))
        loss = nn.functional.cross_entropy(logits.data, inputs.targets)
        self.carried.keep(state, inputs.after, inputs.places, self.ranks)
        rate = self.learning_rate(inputs.passes)
        norm = self._descend(loss, rate=rate, clip=self.config.clip)
        bits = loss.detach() / math.log(2) / inputs.characters
        return {"bits": bits, "gradient": norm, "learning_rate": rate}
