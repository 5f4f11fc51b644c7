"""Where the latent vectors of a clip's steps come from: what was seen of it, or chance."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.runtime.rows import Rows, laid_out, layouts


class Latents(ABC):
    """Latent vectors of a clip's steps, to be taken in their order."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """The next steps', (T, N, latent_dim), of which the prior says N(mu, exp(logvar))."""
        steps = slice(self.taken, self.taken + len(mu))
        self.taken += len(mu)
        return self._of(steps, mu, logvar)

    @abstractmethod
    def _of(self, steps: slice, mu: Tensor, logvar: Tensor) -> Tensor: ...


class Drawn(Latents):
    """From the prior, by noise (T, N, latent_dim) of N(0, I)."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def _of(self, steps: slice, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + (logvar / 2).exp() * self.noise[steps]


class Expected(Latents):
    """The means (T, N, latent_dim) of the posterior: what most likely was."""

    def __init__(self, mu: Tensor) -> None:
        super().__init__()
        self.mu = mu

    def _of(self, steps: slice, mu: Tensor, logvar: Tensor) -> Tensor:
        return self.mu[steps]


class Inferred(Latents):
    """From the posterior N(mu, exp(logvar)), each (T, N, latent_dim), differentiably.

    Args:
        mu, logvar: of the posterior.
        rows: where the N stand in the whole; None where they are it.

    Attributes:
        kl: the divergences from the prior of the steps taken so far, (T, N) each.
    """

    def __init__(self, mu: Tensor, logvar: Tensor, rows: Rows | None = None) -> None:
        super().__init__()
        self.mu, self.logvar, self.rows = mu, logvar, rows
        self.kl: list[Tensor] = []
        self._in_units: list[tuple[Tensor, Tensor]] = []

    def _of(self, steps: slice, mu: Tensor, logvar: Tensor) -> Tensor:
        # In the prior's units the divergence is that from N(0, I), which takes one pass with the draw.
        scale = (logvar / 2).exp()
        of_prior = ((self.mu[steps] - mu) / scale).flatten(0, 1), (self.logvar[steps] - logvar).flatten(0, 1)
        with laid_out(self.rows.repeated(len(mu)) if self.rows is not None and layouts else None):
            noise, kl = functional.reparameterize_kl(*of_prior)
        self.kl.append(kl.view(mu.shape[:2]))
        self._in_units.append(of_prior)
        return mu + scale * noise.view_as(mu)

    def in_units_of_prior(self) -> tuple[Tensor, Tensor]:
        """(mu, logvar), (T·N, latent_dim) each, of the steps taken so far in units in which the prior is N(0, I)."""
        mu, logvar = zip(*self._in_units, strict=True)
        return torch.cat(mu), torch.cat(logvar)


def split(code: Tensor) -> tuple[Tensor, Tensor]:
    """μ and log σ² of (..., 2·latent_dim); the latter within -8 and 8, beyond which exponentials lose their way."""
    mu, logvar = code.chunk(2, dim=-1)
    return mu.contiguous(), 8 * torch.tanh(logvar / 8)
