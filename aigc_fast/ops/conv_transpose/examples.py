"""Typical calls: what `explain` and `doctor` show, and tests go through."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aigc_fast.ops.examples import Call, Examples


def _conv_transpose(dimensions: int) -> Callable[[], Call]:
    def call() -> Call:
        x, weight = torch.zeros(16, 64, *[8] * dimensions), torch.zeros(64, 32, *[4] * dimensions)
        return (x, weight), {"stride": 2, "padding": 1}

    return call


def _conv(dimensions: int) -> Callable[[], Call]:
    def call() -> Call:
        x, weight = torch.zeros(16, 64, *[8] * dimensions), torch.zeros(64, 64, *[3] * dimensions)
        return (x, weight), {"padding": 1}

    return call


EXAMPLES: Examples = {
    **{f"conv_transpose{d}d": _conv_transpose(d) for d in (1, 2, 3)},
    **{f"conv{d}d": _conv(d) for d in (1, 2, 3)},
}
