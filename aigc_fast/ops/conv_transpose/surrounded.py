"""A convolution in one call with the activation and the mirrored border of its input, and with what is added to its
output: float32 on the CPU, where no gradient is wanted. Each of them saves a pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose import cpu
from aigc_fast.ops.conv_transpose.operators import conv_activation, conv_transpose_activation, plan_of
from aigc_fast.ops.conv_transpose.plan import AXES, Ints, Plan, output_like
from aigc_fast.runtime import native, tuning
from aigc_fast.runtime.activations import FUNCTIONS
from aigc_fast.runtime.native import PLAIN
from aigc_fast.runtime.operator import Operator, in_force, kind_of_call
from aigc_fast.runtime.precision import precision as precision_in_force


class Before(NamedTuple):
    """What meets the input of a convolution.

    Attributes:
        activation, slope: a key of `FUNCTIONS`, and its slope.
        reflected: how many elements of the input are mirrored before and after each spatial axis, the last axis first,
            as `torch.nn.functional.pad` takes them; none where it is empty.
    """

    activation: str = "none"
    slope: float = 0.0
    reflected: Ints = ()

    def apart(self, input: Tensor) -> Tensor:
        """The same in plain PyTorch."""
        if any(self.reflected):
            input = torch.nn.functional.pad(input, self.reflected, "reflect")
        return FUNCTIONS[self.activation](input, self.slope)


NOTHING = Before()
_KEEP_ZERO = FUNCTIONS.keys() - {"sigmoid"}


def surrounded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: Sequence[Any],
    transposed: bool,
    before: Before = NOTHING,
    after: tuple[str, float] = ("none", 0.0),
    added: Tensor | None = None,
    precision: str | None = None,
) -> Tensor | None:
    """The convolution of what `before` makes of the input, with the activation `after` it, plus `added`.

    Args:
        input: (N, C_in, ...).
        weight, bias: of the convolution; bias may be None.
        sizes: what `conv` or `conv_transpose` take after the bias.
        transposed: which of the two it is.
        before: what meets the input.
        after: the name of an activation and its slope.
        added: of the output's shape and layout, or None.
        precision: of float32, a level of PyTorch's switch; None leaves it to the switch.

    Returns:
        The result; None where it had better, or must, be made in more calls than one: where automatic choice leaves the
        convolution to PyTorch, a gradient is wanted, something traces or transforms, or the layouts differ.
    """
    if kind_of_call(input, weight, bias, added) != PLAIN or tuning.is_on():
        return None
    op = conv_transpose_activation if transposed else conv_activation
    numbers = native.arguments(*sizes, *before, *after, precision)
    key = "surrounded", native.signature(input, weight, bias, added), numbers, native.level(), precision_in_force()
    found = op.choice.remembered(key)
    if found is None:
        prepare = in_force(precision).run
        found = prepare(_prepare, op, input, weight, bias, tuple(sizes), transposed, before, after, added) or _declined
        op.choice.remember(key, found)
    return found(input, weight, bias, added)


def _declined(*args: Any) -> None:
    return None


def _prepare(
    op: Operator,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: tuple[Any, ...],
    transposed: bool,
    before: Before,
    after: tuple[str, float],
    added: Tensor | None,
) -> Callable[..., Tensor] | None:
    """What runs such a call, or None."""
    if not input.is_cpu or input.dtype != torch.float32 or before.activation not in _KEEP_ZERO:
        return None
    if not _can_reflect(input, before.reflected):
        return None
    padded = before.apart(input)
    args = padded, weight, bias, *sizes, *after
    if op.choice.pick(args).name != "cpu":
        return None
    plan = plan_of(op, padded, weight, bias, *sizes)
    if added is not None and not _lies_like(added, output_like(padded, weight, plan)):
        return None

    def in_parts(input: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None) -> Tensor:
        output = op.run(before.apart(input), weight, bias, *sizes, *after)
        return output if added is None else output.add_(added)

    meets = cpu.Surroundings(before.activation, before.slope, _mirrored(before, plan), added is not None)
    return cpu.prepare_forward(input, weight, bias, plan, in_parts, *after, meets)


def _can_reflect(input: Tensor, reflected: Ints) -> bool:
    sizes = [size for size in reversed(input.shape[2:]) for _ in range(2)]
    return all(0 <= count < size for count, size in zip(reflected, sizes, strict=False))


def _mirrored(before: Before, plan: Plan) -> Ints | None:
    """How many elements mirror the input before each of three axes; the convolution pads with none."""
    if not any(before.reflected):
        return None
    firsts = before.reflected[::2][::-1]
    return (*(0,) * (AXES - len(firsts)), *firsts)


def _lies_like(added: Tensor, output: Tensor) -> bool:
    return added.shape == output.shape and added.stride() == output.stride() and added.dtype == output.dtype
