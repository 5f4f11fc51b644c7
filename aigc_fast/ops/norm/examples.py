"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.ops.examples import Call, Example, Examples, Form, given

_MAP, _SMALL_MAP = (4, 128, 32, 32), (2, 6, 5, 3)


def _of_groups(input: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return (input, 32, weight, bias), {"activation": "silu"}


def _of_few_groups(input: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return (input, 3, weight, bias, 1e-3), {"activation": "gelu"}


def _of_channels(input: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return (input,), {"weight": weight, "bias": bias, "activation": "gelu_tanh"}


EXAMPLES: Examples = {
    "group_norm": Example(Form((_MAP, (128,), (128,)), _of_groups), Form((_SMALL_MAP, (6,), (6,)), _of_few_groups)),
    "instance_norm": Example(given(_MAP, activation="relu"), Form((_SMALL_MAP, (6,), (6,)), _of_channels)),
    "layer_norm": Example(
        Form(((8, 128, 768), (768,), (768,)), lambda input, *affine: ((input, (768,), *affine), {})),
        Form(
            ((3, 2, 5, 7), (5, 7), (5, 7)),
            lambda input, *affine: ((input, (5, 7), *affine), {"eps": 1e-3, "activation": ("elu", 0.5)}),
        ),
    ),
}
