"""Every public function as a function of tensors alone, on small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@dataclass(frozen=True)
class Case:
    """A public function as a function of tensors alone.

    Attributes:
        call: the function on our side.
        expected: the same in PyTorch, or ours on the reference backend; None for the latter.
        shapes: of the inputs.
    """

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    expected: Callable[..., Tensor] | None = None

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [(torch.randn(shape) * 0.5).to(dtype) for shape in self.shapes]

    def ours(self, *tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return self.call(*tensors)

    def theirs(self, *tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        if self.expected is not None:
            return self.expected(*tensors)
        with aigc_fast.backend("reference"):
            return self.call(*tensors)


def convolution(name: str) -> Case:
    size, kernel = (5,) * int(name[-2]), (3,) * int(name[-2])

    def call(home: Any) -> Callable[..., Tensor]:
        return lambda input, weight, bias: getattr(home, name)(input, weight, bias, stride=2, padding=1)

    return Case(call(AF), ((2, 6, *size), (6, 6, *kernel), (6,)), call(TF))


CASES = {
    **{name: convolution(name) for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")},
    **{name: convolution(name) for name in ("conv1d", "conv2d", "conv3d")},
    "randn": Case(lambda like: AF.randn(like.shape, dtype=like.dtype), ((6, 7),)),
    "rand": Case(lambda like: AF.rand(like.shape, dtype=like.dtype), ((6, 7),)),
    "dropout": Case(lambda input: AF.dropout(input, 0.3), ((6, 7),)),
    "reparameterize": Case(lambda mu, logvar: AF.reparameterize(mu, logvar), ((6, 7), (6, 7))),
    "reparameterize_kl": Case(
        lambda mu, logvar: torch.cat([part.reshape(-1) for part in AF.reparameterize_kl(mu, logvar)]), ((6, 7), (6, 7))
    ),
    "scaled_dot_product_attention": Case(
        lambda q, k, v: AF.scaled_dot_product_attention(q, k, v, is_causal=True, window=5),
        ((2, 4, 9, 8), (2, 4, 9, 8), (2, 4, 9, 8)),
    ),
    "varlen_attn": Case(
        lambda q, k, v: AF.varlen_attn(q, k, v, torch.tensor([0, q.shape[0] // 2, q.shape[0]]), window_size=(3, 0)),
        ((9, 4, 8), (9, 4, 8), (9, 4, 8)),
    ),
    "ar_recursion": Case(lambda x, c, state: AF.ar_recursion(x, 0.2 * c, state[: x.shape[0]]), ((3, 17), (4,), (3, 4))),
    "sample_wise_lpc": Case(lambda x, a: AF.sample_wise_lpc(x, 0.2 * a[: x.shape[0]]), ((3, 17), (3, 17, 4))),
    "lfilter": Case(
        lambda x, a, b: AF.lfilter(x, torch.cat([torch.ones_like(a[:1]), 0.2 * a]), b, clamp=False),
        ((3, 17), (3,), (4,)),
    ),
    "kl_standard_normal": Case(lambda mu, logvar: AF.kl_standard_normal(mu, logvar), ((6, 7), (6, 7))),
}
