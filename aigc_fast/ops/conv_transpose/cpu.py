"""The native CPU kernels of convolution, over csrc/cpu/conv_transpose.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose import reference
from aigc_fast.ops.conv_transpose.packing import packing
from aigc_fast.ops.conv_transpose.plan import (
    AXES,
    Ints,
    Plan,
    is_dense,
    layout,
    memory_format,
    output_like,
    packed_ints,
    strides_of_axes,
)
from aigc_fast.runtime import dtypes, native
from aigc_fast.runtime.activations import CODES
from aigc_fast.runtime.memory import LEAST_REUSED, placed
from aigc_fast.runtime.precision import factors_for

DTYPES = {dtype: dtypes.DTYPES[dtype] for dtype in (torch.float32, torch.bfloat16)}
_ALGORITHMS = "DIRECT", "WINOGRAD", "NARROW", "COL2IM", "DIRECT_BF16", "DIRECT_SPLIT", "MATRIX", "DEPTHWISE"
DIRECT, WINOGRAD, NARROW, COL2IM, DIRECT_BF16, DIRECT_SPLIT, MATRIX, DEPTHWISE = native.codes(
    "conv_algorithms", *_ALGORITHMS
)
ALGORITHMS = {
    DIRECT: "direct: a product over the taps of each phase",
    WINOGRAD: "Winograd: products over windows that all phases share",
    NARROW: "few channels: neighbouring pixels fill the vectors",
    COL2IM: "few output channels: products of all taps, added up where they fall",
    DIRECT_BF16: "direct: a product of bfloat16 over the taps of each phase",
    DIRECT_SPLIT: "direct: float32 as sums of two bfloat16",
    MATRIX: "a single pixel: a product of matrices",
    DEPTHWISE: "depthwise: channels fill the vectors",
}
# The kinds that the choice between these and PyTorch's distinguishes.
KINDS = {DIRECT: "direct", WINOGRAD: "winograd", NARROW: "narrow", COL2IM: "col2im", DEPTHWISE: "depthwise"}
# Packing this many numbers again costs less than finding them packed.
SMALL_WEIGHT = 1024


class Surroundings(NamedTuple):
    """What a convolution of float32 meets besides its own operands, in one call with it.

    Attributes:
        activation, slope: of its input; a key of `ACTIVATIONS` that keeps 0.
        reflected: how many elements mirror the input before each of the three axes, in place of the plan's padding; as
            many follow it as the output asks for. None pads with zeros, as the plan says.
        added: whether something of the output's layout is added to the result.
    """

    activation: str = "none"
    slope: float = 0.0
    reflected: Ints | None = None
    added: bool = False

    def suit(self, method: int) -> bool:
        """Whether an algorithm knows of them."""
        if self.reflected is not None or self.added:
            return method in (DIRECT, WINOGRAD, DEPTHWISE)
        return self.activation == "none" or method in (DIRECT, WINOGRAD, DEPTHWISE, NARROW, COL2IM)


ALONE = Surroundings()


def unsupported(tensors: Sequence[Tensor | None]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    first = tensors[0]
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"input is on {tensor.device}"
        if tensor.dtype not in DTYPES or tensor.dtype != first.dtype:
            return f"dtype {tensor.dtype}: the kernels take float32 or bfloat16, the same for all arguments"
        if tensor.numel() == 0:
            return "an argument has no elements"
    return native.cpu_reason()


def algorithm(in_layout: bytes, out_layout: bytes, geometry: bytes, factors: int) -> int:
    """The algorithm that is expected to be fastest, by csrc/cpu/conv_transpose.cpp."""
    return native.kernels().conv_algorithm(in_layout, out_layout, geometry, factors)


def _rows(tensor: Tensor) -> Tensor:
    """(N, everything else) in float32: PyTorch's bfloat16 product is slow without AMX or AVX512-BF16."""
    return tensor.detach().flatten(1).to(torch.float32)


def _matrix_forward(
    plan: Plan, activation: str, slope: float, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    """A planned convolution of a single pixel, as a product of matrices."""
    transposed = plan.geometry[-1]
    product = torch.mm(_rows(input), _rows(weight) if transposed else _rows(weight).t())
    output = product.reshape(plan.output_shape)
    if bias is not None:
        output += bias.detach().view(-1, *(1,) * (output.dim() - 2))
    output = reference.ACTIVATIONS[activation](output, slope)
    return output.to(input.dtype).contiguous(memory_format=memory_format(input, weight))


def _floats(bias: Tensor | None) -> Tensor | None:
    if bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()):
        return bias
    return bias.detach().to(torch.float32).contiguous()


def forward_algorithm(input: Tensor, weight: Tensor, plan: Plan) -> int | None:
    """The algorithm that the convolution takes, None where the kernels cannot take it."""
    if unsupported((input, weight)) is not None:
        return None
    if plan.is_matrix:
        return MATRIX
    layouts = layout(input), layout(output_like(input, weight, plan))
    return algorithm(*layouts, plan.packed_geometry, factors_for(input.dtype, plan.uses))


def prepare_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: Plan,
    fallback: Callable[..., Tensor],
    activation: str = "none",
    slope: float = 0.0,
    surroundings: Surroundings = ALONE,
) -> Callable[..., Tensor] | None:
    """What runs a planned convolution, transposed or not, of these shapes, strides and dtypes.

    Args:
        input: on the CPU, in float32 or bfloat16, as `weight`.
        weight: of (C_in, C_out / groups, ...) where transposed, else (C_out, C_in / groups, ...).
        bias: of C_out, or None.
        plan: of the convolution.
        fallback: what runs where the weight is not finite or its packed form has no room, with the same arguments.
        activation: a key of `ACTIVATIONS`.
        slope: of leaky_relu.
        surroundings: of the convolution; `plan` is that of an input whose border was mirrored before.

    Returns:
        A function of (input, weight, bias, and anything) that gives the output; what is added comes first of anything.
        None where the surroundings do not suit the algorithm.
    """
    if plan.is_matrix:
        if surroundings is not ALONE:
            return None
        fallback = partial(_matrix_forward, plan, activation, slope)
        if not plan.geometry[-1]:
            return fallback
    like = output_like(input, weight, plan)
    layouts, geometry = (layout(input), layout(like)), plan.packed_geometry
    if surroundings.reflected is not None:
        geometry = packed_ints((*plan.geometry[: 2 * AXES], *surroundings.reflected, *plan.geometry[3 * AXES :]))
    best = algorithm(*layouts, geometry, factors_for(input.dtype, plan.uses))
    if not surroundings.suit(best):
        return None
    methods = (best,) if plan.is_matrix else dict.fromkeys((best, DIRECT))
    call = _kernel_call(input, bias, like, CODES[activation], slope, surroundings)
    if weight.numel() <= SMALL_WEIGHT and is_dense(weight):
        return _packing_at_every_call(call, weight, geometry, methods, fallback)
    packings = {
        method: packing(weight, DTYPES[input.dtype], *layouts, geometry, method, plan.uses) for method in methods
    }
    # Packing costs as much as a single pixel's product.
    ways = [(method, packed.kept if plan.is_matrix else packed.of) for method, packed in packings.items()]
    if not plan.is_matrix:
        ways += [(method, packed.without_room) for method, packed in packings.items()]
    return _with_packed_weight(call, geometry, ways, fallback)


def _kernel_call(
    input: Tensor, bias: Tensor | None, like: Tensor, activation: int, slope: float, surroundings: Surroundings
) -> Callable[..., Tensor | None]:
    """What calls a forward kernel for tensors like these: the output, or None where the kernel did not compute it.

    Args:
        input: as `like`, of the shape, strides and dtype of the calls.
        bias: as for `prepare_forward`.
        like: the output.
        activation: its code.
        slope: of leaky_relu.
        surroundings: of the convolution.
    """
    code, in_layout, out_layout = DTYPES[input.dtype], layout(input), layout(like)
    shape, strides, is_large = tuple(like.shape), like.stride(), like.nbytes >= LEAST_REUSED
    before = CODES[surroundings.activation], surroundings.slope, int(surroundings.reflected is not None)
    has_floats = _floats(bias) is bias

    def call(
        kernel: Callable[..., int],
        input: Tensor,
        weight: int,
        bias: Tensor | None,
        rest: tuple[Any, ...],
        geometry: bytes,
        method: int,
    ) -> Tensor | None:
        output = input.new_empty_strided(shape, strides)
        if is_large:
            placed(output)
        shift = bias if has_floats else _floats(bias)
        taken = kernel(
            input.data_ptr(),
            code,
            in_layout,
            weight,
            None if shift is None else shift.data_ptr(),
            output.data_ptr(),
            code,
            out_layout,
            geometry,
            method,
            activation,
            slope,
            rest[0].data_ptr() if surroundings.added else None,
            *before,
        )
        return output if taken else None

    return call


def _with_packed_weight(
    call: Callable[..., Tensor | None],
    geometry: bytes,
    ways: Sequence[tuple[int, Callable[[Tensor], Tensor | None]]],
    fallback: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """What runs a planned convolution by the first algorithm for which there is a packed weight.

    Args:
        call: as of `_kernel_call`.
        geometry: of the convolution.
        ways: algorithms, and what gives the weight packed for each, or None.
        fallback: what runs where no algorithm does.
    """

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        for method, packed_of in ways:
            packed = packed_of(weight)
            if packed is None:
                continue
            kernel = native.kernels().conv_forward
            output = call(kernel, input, packed.data_ptr(), bias, rest, geometry, method)
            if output is not None:
                return output
        return fallback(input, weight, bias, *rest)

    return run


def _packing_at_every_call(
    call: Callable[..., Tensor | None],
    weight: Tensor,
    geometry: bytes,
    methods: Iterable[int],
    fallback: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """What runs a planned convolution of few weights."""
    and_strides = geometry + packed_ints(strides_of_axes(weight))

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        for method in methods:
            kernel = native.kernels().conv_forward_once
            output = call(kernel, input, weight.data_ptr(), bias, rest, and_strides, method)
            if output is not None:
                return output
        return fallback(input, weight, bias, *rest)

    return run


def gradient_algorithm(large: Tensor, small: Tensor, plan: Plan) -> str:
    """The algorithm that the weight gradient takes: a value of `KINDS`; "other" where the kernels cannot take it."""
    if unsupported((large, small)) is not None:
        return "other"
    return KINDS[native.kernels().conv_weight_gradient_algorithm(layout(large), layout(small), plan.packed_geometry)]


def prepare_weight_gradient(large: Tensor, small: Tensor, plan: Plan, weight_shape: Ints) -> Callable[..., Tensor]:
    """What gives the weight gradient, contiguous, of the planned convolution from `large` to `small`."""
    dtype, code = large.dtype, DTYPES[large.dtype]
    large_layout, small_layout, geometry = layout(large), layout(small), plan.packed_geometry
    kernel = native.kernels().conv_weight_gradient

    def run_matrix(large: Tensor, small: Tensor, *rest: Any) -> Tensor:
        return torch.mm(_rows(small).t(), _rows(large)).reshape(weight_shape).to(dtype)

    def run(large: Tensor, small: Tensor, *rest: Any) -> Tensor:
        output = torch.empty(weight_shape, dtype=dtype)
        kernel(large.data_ptr(), large_layout, small.data_ptr(), small_layout, code, geometry, output.data_ptr())
        return output

    return run_matrix if plan.is_matrix else run


def through_activation(gradient: Tensor, output: Tensor, activation: str, slope: float) -> tuple[Tensor, Tensor] | None:
    """The gradient before a convolution's activation, and the bias's, or None where the kernel cannot take these.

    Args:
        gradient: to the output, of its shape.
        output: after the activation, (N, C, ...).
        activation: a key of `aigc_fast.runtime.activations.GRADIENTS_FROM_OUTPUT`.
        slope: of leaky_relu.
    """
    if activation == "none" or gradient.dtype != output.dtype or unsupported((gradient, output)) is not None:
        return None
    inner, of_bias = placed(torch.empty_like(output)), output.new_empty(output.shape[1])
    kernel = native.kernels().conv_activation_gradient
    return (inner, of_bias) if kernel(inner, of_bias, gradient, output, CODES[activation], slope) else None
