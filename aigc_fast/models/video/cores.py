"""What remembers from frame to frame: a ConvLSTM, or an LSTM with latent vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast import nn as fast
from aigc_fast.models.video.frames import MATCHES, MOVE, Features, by_moves, summed_up
from aigc_fast.models.video.latents import Latents, split
from aigc_fast.nn.overrides import Methods, calls_are_observed
from aigc_fast.ops.recurrent.maps import conv_lstm, step_by_step
from aigc_fast.runtime.operator import plain_eager

PRIORS = ("learned", "fixed")
_KNOWN = Methods([fast.Conv2d])
# Numbers of a latent vector for how things move. Their posterior begins narrow: nobody listens to a wide one, which
# learns to say nothing.
_MOVED, _NARROW = 2, -3.0


class Core(nn.Module, ABC):
    """Goes from the features of frames to maps of which the next frames are decoded.

    Sequences come time first. A class is (N, num_classes): weights, all 0 where nobody knows it.

    Attributes:
        maps: channels of what it gives to the decoder.
    """

    maps: int

    @abstractmethod
    def latents_of(self, steps: int) -> int:
        """How many latent vectors so many steps have."""

    @abstractmethod
    def seen(self, frames: int) -> int:
        """How many first frames of a clip its posterior reads."""

    @abstractmethod
    def infer(self, features: Features, classes: Tensor) -> tuple[Tensor, Tensor] | None:
        """μ and log σ² of the posterior, (T, N, latent_dim), of T frames; None where steps have no latent vectors."""

    @abstractmethod
    def begin(self, classes: Tensor) -> Any:
        """The state before N clips."""

    @abstractmethod
    def forward(
        self, inputs: Features, state: Any, latents: Latents | None, classes: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """What T frames say of those that come.

        Returns:
            Maps (T, N, maps, h, w), by which moves it expects these to match, (T, N, 14, h, w), and the state.
        """


class ConvLSTM(nn.Module):
    """An LSTM whose state is maps, and whose products are convolutions 3×3.

    Args:
        inputs: channels of the inputs.
        hidden: channels of the state.

    Method: Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting", 2015;
    without peepholes.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_input = fast.Conv2d(inputs, 4 * hidden, 3, padding=1)
        self.of_state = fast.Conv2d(hidden, 4 * hidden, 3, padding=1, bias=False)
        with torch.no_grad():
            # Remembers until it learns to forget (Jozefowicz et al., "An Empirical Exploration of Recurrent Network
            # Architectures", 2015).
            self.of_input.bias[hidden : 2 * hidden] += 1

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (T, N, hidden, h, w) of inputs (T, N, C, h, w), and the state (hidden, cell) after them."""
        hidden, cell = state
        sums = self.of_input(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        if self._is_one_call(sums):
            outputs, cell = conv_lstm(sums, self.of_state.weight, hidden, cell)
        else:
            outputs, cell = step_by_step(sums, self.of_state, hidden, cell)
        return outputs, (outputs[-1], cell)

    def _is_one_call(self, sums: Tensor) -> bool:
        """Whether nothing but this package's own layer sees the steps."""
        layer = self.of_state
        if type(layer) is not fast.Conv2d or getattr(layer, "float32_precision", None) is not None:
            return False
        eager = plain_eager() and not torch.is_autocast_enabled(sums.device.type)
        return eager and not calls_are_observed() and _KNOWN.run_unseen(layer)


class ConvLSTMCore(Core):
    """A `ConvLSTM`: all is said by the frames that it has seen.

    Args:
        features: channels of the frames' features.
        side: (height, width) of the features.
        hidden: channels of the state.
    """

    def __init__(self, features: int, side: tuple[int, int], hidden: int) -> None:
        super().__init__()
        self.maps, self.side = hidden, side
        self.recurrent = ConvLSTM(features, hidden)

    def latents_of(self, steps: int) -> int:
        """See `Core`: none."""
        return 0

    def seen(self, frames: int) -> int:
        """See `Core.seen`: there is none."""
        return 0

    def infer(self, features: Features, classes: Tensor) -> None:
        """See `Core.infer`: nothing."""

    def begin(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Core.begin`."""
        zeros = classes.new_zeros(len(classes), self.maps, *self.side)
        return zeros, zeros

    def forward(
        self, inputs: Features, state: tuple[Tensor, Tensor], latents: Latents | None, classes: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """See `Core.forward`; classes tell nothing more, and moves are as before."""
        maps, state = self.recurrent(inputs.coarse, state)
        return maps, inputs.matches, state


class LatentCore(Core):
    """LSTMs over frames as vectors: one foresees with a latent vector for each step, one infers these from the frames
    that come, and one says what they may be from those that came before.

    Where the frame before does not tell how things move, as a clip's first one never does, a vector's first numbers do;
    the posterior begins with what it finds of that.

    Args:
        features: channels of the frames' features.
        side: (height, width) of the features.
        hidden: units of each LSTM.
        latent_dim: size of a latent vector.
        classes: number of classes, 0 for none.
        prior: one of `PRIORS`; "fixed" for N(0, I) at every step.

    Method: Denton and Fergus, "Stochastic Video Generation with a Learned Prior", 2018.
    """

    def __init__(
        self, features: int, side: tuple[int, int], hidden: int, latent_dim: int, classes: int, prior: str
    ) -> None:
        super().__init__()
        self.maps, self.latent_dim, self.side = features, latent_dim, side
        cells = side[0] * side[1]
        self.read = nn.Sequential(nn.Linear(features * cells + MATCHES, hidden), nn.Tanh())
        self.posterior = fast.LSTM(hidden + classes, hidden)
        self.code = nn.Linear(hidden, 2 * latent_dim)
        self.prior = self.prior_code = None
        if prior == "learned":
            self.prior = fast.LSTM(hidden + classes, hidden)
            self.prior_code = nn.Linear(hidden, 2 * latent_dim)
        self.predictor = fast.LSTM(hidden + latent_dim + classes, hidden)
        self.spread = nn.Sequential(nn.Linear(hidden, features * cells), nn.LeakyReLU(0.2))
        self.moves = by_moves(latent_dim)
        with torch.no_grad():
            # At first what is said of moves is what was found.
            self.moved = min(_MOVED, latent_dim)
            self.code.weight.unflatten(0, (2, -1))[:, : self.moved] *= 0.1

    def latents_of(self, steps: int) -> int:
        """See `Core`: one for each."""
        return steps

    def seen(self, frames: int) -> int:
        """See `Core.seen`: all."""
        return frames

    def infer(self, features: Features, classes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Core.infer`."""
        read, moved, known = self._read(features, classes)
        mu, logvar = split(self.code(self.posterior(read)[0]))
        unknown = 1 - torch.cat([torch.zeros_like(known[:1]), known[:-1]])[..., : self.moved]
        others = (0, mu.shape[-1] - self.moved)
        found = unknown * moved[..., : self.moved] / MOVE
        return mu + nn.functional.pad(found, others), logvar + nn.functional.pad(_NARROW * unknown, others)

    def begin(self, classes: Tensor) -> tuple[Any, Any]:
        """See `Core.begin`."""
        zeros = classes.new_zeros(1, len(classes), self.predictor.hidden_size)
        return (zeros, zeros), (zeros, zeros)

    def forward(
        self, inputs: Features, state: tuple[Any, Any], latents: Latents, classes: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
        """See `Core.forward`."""
        of_prior, of_predictor = state
        read, _, known = self._read(inputs, classes)
        if self.prior is None:
            mu = logvar = read.new_zeros(*read.shape[:2], self.latent_dim)
        else:
            remembered, of_prior = self.prior(read, of_prior)
            mu, logvar = split(self.prior_code(remembered))
        z = latents.take(mu, logvar)
        foreseen, of_predictor = self.predictor(torch.cat([read, z], dim=-1), of_predictor)
        maps = self.spread(foreseen).unflatten(-1, (self.maps, *self.side))
        told = self.moves(z).unflatten(-1, (2, -1)) * (1 - known)[..., None]
        return maps, inputs.matches + told.flatten(-2)[..., None, None], (of_prior, of_predictor)

    def _read(self, features: Features, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames as vectors, beside their class, (T, N, hidden + classes), how things move in them, and how well that
        is known, (T, N, 2) each."""
        probable, moved, known = summed_up(features.matches)
        found = self.read(torch.cat([features.coarse.flatten(2), probable], dim=-1))
        return torch.cat([found, classes.expand(len(found), -1, -1)], dim=-1), moved, known
