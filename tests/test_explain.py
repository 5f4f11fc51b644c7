"""What `explain` names is what runs: by the native kernels that are called, for every example, layout and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_backends import needs_native
from torch import Tensor
from watching import launches

import aigc_fast
from aigc_fast import functional
from aigc_fast.ops.examples import Call, examples

# What is asked or prepared before a call, which PyTorch may then have.
ASKED = {"attention_few_queries", "attention_uses_pairs", "digest"}
ASKED |= {"recurrent_pack", "recurrent_packed_size", "recurrent_takes_pairs"}
ASKED |= {"linear_pack", "linear_packed_bytes"}
ASKED |= {"conv_algorithm", "conv_pack", "conv_packed_size", "conv_weight_gradient_algorithm"}


def _convolution(shape: tuple[int, ...], weight: tuple[int, ...], **options: int) -> Callable[[], Call]:
    return lambda: ((torch.ones(shape), torch.ones(weight)), options)


def _network(
    name: str, dtype: torch.dtype, batch: int, layers: int = 1, dropout: float = 0.0, train: bool = False
) -> Call:
    gates, states = (4, 2) if name == "lstm" else (3, 1)
    hx = [torch.ones(layers, batch, 8, dtype=dtype) for _ in range(states)]
    shapes = ((gates * 8, 8), (gates * 8, 8), (gates * 8,), (gates * 8,)) * layers
    params = [torch.ones(shape, dtype=dtype) for shape in shapes]
    numbers = True, layers, dropout, train, False, False
    return (torch.ones(5, batch, 8, dtype=dtype), hx if states == 2 else hx[0], params, *numbers), {}


# Where PyTorch's call is as good, or all there is.
OTHERS: dict[str, tuple[str, Callable[[], Call]]] = {
    "light": ("conv2d", _convolution((1, 4, 8, 8), (4, 4, 3, 3))),
    "light with gradients": ("conv2d", _convolution((1, 16, 16, 16), (16, 16, 3, 3), padding=1)),
    "depthwise": ("conv2d", _convolution((4, 32, 28, 28), (32, 1, 3, 3), groups=32)),
    "depthwise, transposed": ("conv_transpose2d", _convolution((4, 32, 16, 16), (32, 1, 4, 4), groups=32, stride=2)),
    "strided": ("conv2d", _convolution((8, 32, 57, 57), (64, 32, 7, 7), stride=2, padding=3)),
    "few channels": ("conv2d", _convolution((8, 3, 32, 32), (64, 3, 3, 3), padding=1)),
    "patches": ("conv_transpose2d", _convolution((2, 64, 16, 16), (64, 32, 2, 2), stride=2)),
    "double": ("conv2d", lambda: ((torch.ones(2, 8, 9, 9).double(), torch.ones(8, 8, 3, 3).double()), {})),
    "bfloat16": ("conv2d", lambda: ((torch.ones(8, 64, 28, 28).bfloat16(), torch.ones(64, 64, 3, 3).bfloat16()), {})),
    "small attention": ("scaled_dot_product_attention", lambda: ((torch.ones(1, 2, 5, 8),) * 3, {})),
    "wide heads": ("scaled_dot_product_attention", lambda: ((torch.ones(1, 2, 200, 192),) * 3, {})),
    "decoding": (
        "scaled_dot_product_attention",
        lambda: ((torch.ones(1, 12, 1, 64), *[torch.ones(1, 12, 1000, 64)] * 2), {}),
    ),
    "a mask": (
        "scaled_dot_product_attention",
        lambda: ((*[torch.ones(2, 4, 64, 32)] * 3, torch.ones(64, 64, dtype=torch.bool).tril()), {}),
    ),
    "a learned mask": (
        "scaled_dot_product_attention",
        lambda: ((*[torch.ones(2, 4, 64, 32)] * 3, torch.zeros(64, 64)), {}),
    ),
    "shared keys": (
        "scaled_dot_product_attention",
        lambda: ((torch.ones(2, 3, 4, 64, 32), *[torch.ones(1, 3, 4, 64, 32)] * 2), {}),
    ),
    "no batch": ("scaled_dot_product_attention", lambda: (([torch.ones(7, 32)] * 3), {})),
    "an infinite scale": ("scaled_dot_product_attention", lambda: ((torch.ones(2, 4, 64, 32),) * 3, {"scale": 1e999})),
    "attention with dropout": (
        "scaled_dot_product_attention",
        lambda: ((torch.ones(1, 2, 5, 8),) * 3, {"dropout_p": 0.5}),
    ),
    "double attention": ("scaled_dot_product_attention", lambda: ((torch.ones(1, 2, 5, 8).double(),) * 3, {})),
    "nothing to drop": ("dropout", lambda: ((torch.ones(9), 0.0), {})),
    "double recurrence": ("gru", lambda: _network("gru", torch.float64, 2)),
    "recurrence in bfloat16": ("lstm", lambda: _network("lstm", torch.bfloat16, 2)),
    "recurrence of a sequence in bfloat16": ("lstm", lambda: _network("lstm", torch.bfloat16, 1)),
    "dropout between layers": ("gru", lambda: _network("gru", torch.float32, 2, layers=2, dropout=0.5, train=True)),
    "complex": ("ar_recursion", lambda: ((torch.ones(2, 9) + 0j, torch.zeros(3) + 0j), {})),
}
CALLS = {**{name: (name, call) for name, call in examples().items()}, **OTHERS}


def _prepared(value: Any, layout: str, gradients: bool) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    value = value.clone()
    if layout == "channels_last" and value.dim() in (4, 5):
        value = value.to(memory_format=torch.channels_last if value.dim() == 4 else torch.channels_last_3d)
    return value.requires_grad_(gradients)


@needs_native
@pytest.mark.parametrize("gradients", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("call", CALLS)
def test_explain_names_what_runs(call: str, layout: str, gradients: bool) -> None:
    name, make = CALLS[call]
    args, options = make()
    args = tuple(_prepared(arg, layout, gradients) for arg in args)
    explained = aigc_fast.explain(name, *args, **options)
    with launches() as called:
        getattr(functional, name)(*args, **options)
    assert explained.chosen == ("cpu" if set(called) - ASKED else "reference"), (explained, called)
    assert (explained.reasons["cpu"] is None) == (
        explained.chosen == "cpu"
    ) or explained.detail == "no kernel is needed"


def test_every_public_function_has_an_example() -> None:
    assert set(examples()) == set(functional.__all__)
