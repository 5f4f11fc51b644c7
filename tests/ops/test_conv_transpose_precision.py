"""Convolutions under PyTorch's switch for the precision of float32."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as TF
from convolution_cases import FEW_CONVOLUTIONS, Convolution
from convolution_checks import doubled, functions, needs_native
from parity import float32_precision, relative_error

import aigc_fast
import aigc_fast.functional as AF

# Depths and widths around what a tile of AMX holds: 16 pairs of channels, 16 pixels, 16 output channels.
WIDE = [
    Convolution(4, 64, 32, (8, 8), 4, 2, 1),
    Convolution(2, 8, 17, (5, 4), 4, 2, 1),
    Convolution(1, 34, 33, (3, 35), 4, 2, 1),
    Convolution(1, 100, 70, (6, 17), 3, 2, 1, 1),
    Convolution(2, 33, 24, (4, 4), 5, 3, 2, 1),
    Convolution(1, 48, 130, (150,), 8, 4, 2),
    Convolution(2, 32, 20, (2, 3, 9), 4, 2, 1),
    Convolution(2, 64, 48, (7, 20), 4, 2, 1, groups=2),
    Convolution(1, 66, 24, (9, 33), 3, 1, 1, groups=2),
    Convolution(2, 96, 64, (10, 12), 3, 1, 1, transposed=False),
    Convolution(2, 40, 64, (11, 21), 4, 2, 1, transposed=False),
    Convolution(1, 12, 40, (20, 30), 3, 1, 2, dilation=2, transposed=False),
]


@pytest.fixture(params=[("highest", 2e-6), ("high", 2e-5), ("medium", 6e-3)], ids=lambda param: param[0])
def precision_limit(request: pytest.FixtureRequest) -> Iterator[float]:
    """The relative error that a setting of `torch.set_float32_matmul_precision` may bring, which is in force."""
    precision, limit = request.param
    with float32_precision(precision):
        yield limit


@needs_native
@pytest.mark.parametrize("case", [*WIDE, *FEW_CONVOLUTIONS], ids=str)
def test_precision_on_every_level(case: Convolution, precision_limit: float, isa: str) -> None:
    ours, theirs = functions(case)
    tensors = list(case.tensors())
    exact = theirs(*doubled(tensors), **case.arguments)
    with aigc_fast.backend("cpu"):
        assert relative_error(ours(*tensors, **case.arguments), exact) < precision_limit


@needs_native
@pytest.mark.parametrize("where", [0, 1], ids=["input", "weight"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 3.4e38])
def test_values_that_cannot_be_split_on_every_level(value: float, where: int, isa: str) -> None:
    case = WIDE[0]
    tensors = list(case.tensors())
    tensors[where][1, 2, 3, 3] = value
    expected = TF.conv_transpose2d(*tensors, **case.arguments)
    with float32_precision("high"), aigc_fast.backend("cpu"):
        found = AF.conv_transpose2d(*tensors, **case.arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3, equal_nan=True)
