"""The native kernels of csrc/cpu/reparameterize.cpp."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32
from aigc_fast.runtime.memory import fill_densely


def unsupported(tensor: Tensor, *others: Tensor) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cpu(tensor, tensor.dtype, UP_TO_FLOAT32)


def sample(results: tuple[Tensor | None, Tensor | None], mu: Tensor, logvar: Tensor, key: Tensor | None) -> bool:
    """z and the divergence per row, or either of them, in one pass; see `reference.reparameterize_kl`."""
    kernel = native.kernels().reparameterize
    return kernel(*results, mu, logvar, key) or fill_densely(kernel, results, mu, logvar, key)


def differentiate(
    grads: tuple[Tensor | None, Tensor],
    grad_z: Tensor,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    key: Tensor,
) -> bool:
    """The gradients of mu, where it is given, and of logvar, with the noise made again from the key."""
    kernel, inputs = native.kernels().reparameterize_backward, (grad_z, grad_kl, mu, logvar, key)
    return kernel(*grads, *inputs) or fill_densely(kernel, grads, *inputs)
