"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

from aigc_fast.ops.examples import Example, Examples, Form, given


def _small(dimensions: int) -> Form:
    return given((2, 6, *[5] * dimensions), (6, 6, *[3] * dimensions), (6,), stride=2, padding=1)


def _example(dimensions: int, outputs: int, kernel: int, **options: int) -> Example:
    # The weight of a transposed convolution has its input channels first; the others have equal numbers of channels.
    weight = (64, outputs, *[kernel] * dimensions)
    return Example(given((16, 64, *[8] * dimensions), weight, **options), _small(dimensions))


EXAMPLES: Examples = {
    **{f"conv_transpose{d}d": _example(d, 32, 4, stride=2, padding=1) for d in (1, 2, 3)},
    **{f"conv{d}d": _example(d, 64, 3, padding=1) for d in (1, 2, 3)},
}
