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


def _sample(z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, key: Tensor | None) -> bool:
    kernel = native.cpu.kernels.reparameterize
    return kernel(z, kl, mu, logvar, key) or fill_densely(kernel, (z, kl), mu, logvar, key)


def reparameterize(z: Tensor, mu: Tensor, logvar: Tensor, key: Tensor) -> bool:
    """z = mu + exp(logvar / 2) * noise from the key; see `reference.reparameterize`."""
    return _sample(z, None, mu, logvar, key)


def kl_standard_normal(kl: Tensor, mu: Tensor, logvar: Tensor) -> bool:
    """The divergence from N(0, I) per row; see `reference.kl_standard_normal`."""
    return _sample(None, kl, mu, logvar, None)


def reparameterize_kl(results: tuple[Tensor, Tensor], mu: Tensor, logvar: Tensor, key: Tensor) -> bool:
    """z and the divergence per row in one pass; see `reference.reparameterize_kl`."""
    return _sample(*results, mu, logvar, key)


def reparameterize_backward(grad_logvar: Tensor, grad: Tensor, logvar: Tensor, key: Tensor) -> bool:
    """The gradient of logvar, with the noise made again from the key."""
    kernel, inputs = native.cpu.kernels.reparameterize_backward, (grad, None, None, logvar, key)
    return kernel(None, grad_logvar, *inputs) or fill_densely(kernel, (None, grad_logvar), *inputs)


def reparameterize_kl_backward(
    grads: tuple[Tensor, Tensor], grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor
) -> bool:
    """The gradients of mu and logvar, with the noise made again from the key."""
    kernel, inputs = native.cpu.kernels.reparameterize_backward, (grad_z, grad_kl, mu, logvar, key)
    return kernel(*grads, *inputs) or fill_densely(kernel, grads, *inputs)
