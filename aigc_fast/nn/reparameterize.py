"""The sampling layer of a variational auto-encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.nn.drop_in import node_of, refuse_script
from aigc_fast.ops.reparameterize.functional import reparameterize, reparameterize_kl


class Reparameterize(torch.nn.Module):
    """Samples z = mu + exp(logvar / 2) * noise, between a variational autoencoder's encoder and its decoder.

    Args:
        return_kl: whether to also return the KL divergence from N(0, I); False by default.

    Example:
        >>> sample = Reparameterize(return_kl=True)
        >>> z, kl = sample(mu, logvar)  # shapes (B, ...) and (B,)
    """

    def __init__(self, return_kl: bool = False) -> None:
        super().__init__()
        self.return_kl = return_kl

    def forward(
        self, mu: Tensor, logvar: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """z of the shape of `mu`, or (z, kl) with kl of shape (B,); see `functional.reparameterize_kl`."""
        node = node_of(self, mu, logvar, generator=generator)
        if node is not None:
            return node
        return (reparameterize_kl if self.return_kl else reparameterize)(mu, logvar, generator=generator)

    __prepare_scriptable__ = refuse_script

    def extra_repr(self) -> str:
        return f"return_kl={self.return_kl}"
