"""The native kernel of csrc/cuda/conv_transpose.cu: convolutions to few output channels."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import AXES, Plan, layout, output_like, packed_ints, strides_of_axes
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import CODES
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES

MOST_OUTPUTS = 4
# Whose weights of one channel fit into shared memory.
MOST_TAPS = 2048


def does_not_suit(plan: Plan) -> Reason:
    """Why the kernel does not take a planned convolution, or None."""
    outputs, taps = plan.output_shape[1] // plan.geometry[-2], prod(plan.geometry[:AXES])
    if outputs > MOST_OUTPUTS:
        return f"{outputs} output channels in a group: the kernel takes up to {MOST_OUTPUTS}"
    return f"{taps} taps: the kernel takes up to {MOST_TAPS}" if taps > MOST_TAPS else None


def prepare_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, activation: str = "none", slope: float = 0.0
) -> Callable[..., Tensor]:
    """What runs a planned convolution, transposed or not, of these shapes, strides and dtypes.

    Args:
        input, weight, bias: as of `cpu.prepare_forward`, on a card.
        plan: of the convolution.
        activation: a key of `reference.ACTIVATIONS`.
        slope: of leaky_relu.

    Returns:
        A function of (input, weight, bias, and anything) that gives the output.
    """
    like = output_like(input, weight, plan)
    layouts = layout(input), layout(like)
    shape, strides = plan.output_shape, like.stride()
    groups, transposed = plan.geometry[-2:]
    first, second, *of_taps = strides_of_axes(weight)
    of_output, of_channel = (second, first) if transposed else (first, second)
    of_group = weight.shape[0] // groups * first
    weight_strides, geometry = packed_ints((of_group, of_output, of_channel, *of_taps)), plan.packed_geometry
    code, activation_code = DTYPES[input.dtype], CODES[activation]

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        output = input.new_empty_strided(shape, strides)
        shift = None if bias is None else bias.detach().contiguous()
        native.cuda.conv_few_outputs(
            output.data_ptr(),
            layouts[1],
            input.data_ptr(),
            layouts[0],
            weight.data_ptr(),
            weight_strides,
            None if shift is None else shift.data_ptr(),
            code,
            geometry,
            activation_code,
            slope,
            *queue(input),
        )
        return output

    return run
