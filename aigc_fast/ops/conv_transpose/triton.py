"""Convolution, transposed or not, and its weight gradient as Triton kernels: products of matrices that are never made.

Each output pixel is a row of a product over the taps that it meets and their channels. A transposed convolution goes
phase by phase: the pixels of one residue of the stride meet the same taps, one input pixel apart, so that each phase is
a convolution of stride 1 and nothing is multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import AXES, Ints, Plan, output_like, sizes_of_axes, strides_of_axes
from aigc_fast.runtime.devices import current
from aigc_fast.runtime.precision import EXACT, factors_of

_LEAST_TILE = 16  # of a product by tensor cores, along each axis
_STAGES = 3
# Programs that share a weight gradient's pixels, where it has few elements, and the least blocks of pixels of each.
_PROGRAMS, _LEAST_BLOCKS = 512, 4
_ALIGNMENT = 8  # elements: 16 bytes of those of 16 bits


@triton.jit
def activate(x, slope, ACTIVATION: tl.constexpr):
    """An activation of `reference.ACTIVATIONS`; NaN stays."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x < 0.0, x * slope, x)
    elif ACTIVATION == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        square, decay = x * x, tl.exp(-2.0 * tl.abs(x))
        near = x * (1.0 - square * (0.33333334 - square * 0.13333334))
        far = (1.0 - decay) / (1.0 + decay)
        x = tl.where(square < 0.005, near, tl.where(x < 0.0, -far, far))
    return x


@triton.jit
def _pixels(at, depth, height, width):
    """Batch and place along three axes of each pixel of a map."""
    w = at % width
    above = at // width
    h = above % height
    above = above // height
    return above // depth, (above % depth).to(tl.int32), h.to(tl.int32), w.to(tl.int32)


@triton.jit
def _taps(
    phase,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    PERIOD: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Along one axis, of a transposed convolution's phase: its first tap, how many it has, each PERIOD from the one
    before, and the input pixel where the first one meets the phase's first output."""
    COMMON: tl.constexpr = STRIDE // PERIOD
    reach = phase + PADDING
    first = reach // COMMON * INVERSE % PERIOD
    taps = tl.where(reach % COMMON == 0, (KERNEL - first + PERIOD - 1) // PERIOD, 0)
    return first, taps, (reach - first * DILATION) // STRIDE


_SIZES = ["batch", "channels", "outputs", "depth", "height", "width", "out_depth", "out_height", "out_width"]
_STRIDES = [f"{tensor}_{axis}" for tensor in ("out", "input") for axis in "ncdhw"]
_WEIGHT_STRIDES = [f"weight_{axis}" for axis in ("group", "out", "in", "d", "h", "w")]


# A kernel for each geometry, for no kind of number among sizes and strides.
@triton.jit(do_not_specialize=["slope", *_SIZES, *_STRIDES, *_WEIGHT_STRIDES])
def _convolve(
    out,
    input,
    weight,
    bias,
    slope,
    batch,
    channels,
    outputs,
    depth,
    height,
    width,
    out_depth,
    out_height,
    out_width,
    out_n,
    out_c,
    out_d,
    out_h,
    out_w,
    input_n,
    input_c,
    input_d,
    input_h,
    input_w,
    weight_group,
    weight_out,
    weight_in,
    weight_d,
    weight_h,
    weight_w,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    PERIOD: tl.constexpr,
    INVERSE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Products of sizes and strides are of 64 bits.
    input_d, input_h, input_w = input_d.to(tl.int64), input_h.to(tl.int64), input_w.to(tl.int64)
    weight_d, weight_h, weight_w = weight_d.to(tl.int64), weight_h.to(tl.int64), weight_w.to(tl.int64)
    out_d, out_h, out_w = out_d.to(tl.int64), out_h.to(tl.int64), out_w.to(tl.int64)
    input_c, out_c = input_c.to(tl.int64), out_c.to(tl.int64)
    weight_in, weight_out = weight_in.to(tl.int64), weight_out.to(tl.int64)
    own_d, own_h, own_w = out_depth, out_height, out_width
    phases_h, phases_w, phases = 1, 1, 1
    if TRANSPOSED:
        own_d, own_h, own_w = tl.cdiv(own_d, STRIDE[0]), tl.cdiv(own_h, STRIDE[1]), tl.cdiv(own_w, STRIDE[2])
        phases_h, phases_w = tl.minimum(STRIDE[1], out_height), tl.minimum(STRIDE[2], out_width)
        phases = tl.minimum(STRIDE[0], out_depth) * phases_h * phases_w
    count = batch.to(tl.int64) * own_d * own_h * own_w
    # Neighbours read the same pixels: first the channels of an output, then the phases.
    unit = tl.program_id(0)
    blocks = tl.cdiv(outputs, OUTPUTS)
    block, unit = unit % blocks, unit // blocks
    phase, unit = unit % phases, unit // phases
    blocks = tl.cdiv(count, PIXELS)
    group, unit = (unit // blocks).to(tl.int64), unit % blocks

    at = unit.to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    n, d, h, w = _pixels(at, own_d, own_h, own_w)
    if TRANSPOSED:
        phase_d, phase_h, phase_w = phase // (phases_w * phases_h), phase // phases_w % phases_h, phase % phases_w
        tap_d, taps_d, at_d = _taps(phase_d, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], PERIOD[0], INVERSE[0])
        tap_h, taps_h, at_h = _taps(phase_h, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], PERIOD[1], INVERSE[1])
        tap_w, taps_w, at_w = _taps(phase_w, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], PERIOD[2], INVERSE[2])
        at_d, at_h, at_w = d + at_d, h + at_h, w + at_w
        d, h, w = d * STRIDE[0] + phase_d, h * STRIDE[1] + phase_h, w * STRIDE[2] + phase_w
        MOVE_D: tl.constexpr = -(DILATION[0] * PERIOD[0] // STRIDE[0])
        MOVE_H: tl.constexpr = -(DILATION[1] * PERIOD[1] // STRIDE[1])
        MOVE_W: tl.constexpr = -(DILATION[2] * PERIOD[2] // STRIDE[2])
    else:
        tap_d, tap_h, tap_w = 0, 0, 0
        taps_d, taps_h, taps_w = KERNEL[0], KERNEL[1], KERNEL[2]
        at_d, at_h, at_w = d * STRIDE[0] - PADDING[0], h * STRIDE[1] - PADDING[1], w * STRIDE[2] - PADDING[2]
        MOVE_D: tl.constexpr = DILATION[0]
        MOVE_H: tl.constexpr = DILATION[1]
        MOVE_W: tl.constexpr = DILATION[2]
    is_there = (n < batch) & (d < out_depth) & (h < out_height) & (w < out_width)
    rows = n * input_n + at_d * input_d + at_h * input_h + at_w * input_w
    own = block * OUTPUTS + tl.arange(0, OUTPUTS)
    from_input, from_weight, first = group * channels * input_c, group * weight_group, group * outputs
    if ALIGNED:
        rows, first = tl.multiple_of(rows, 8), tl.multiple_of(first, 8)
        from_input, from_weight = tl.multiple_of(from_input, 8), tl.multiple_of(from_weight, 8)
    input += from_input
    weight += from_weight
    # The axis of pixels in a tile, and that of channels: the one whose neighbours are neighbours in memory is last.
    P: tl.constexpr = 1 if CHANNELS_LAST else 0
    C: tl.constexpr = 1 - P
    rows, own_pixels = tl.expand_dims(rows, P), tl.expand_dims(is_there, P)
    sums = tl.zeros((PIXELS, OUTPUTS) if CHANNELS_LAST else (OUTPUTS, PIXELS), tl.float32)

    steps = tl.cdiv(channels, CHANNELS)
    for step in range(taps_d * taps_h * taps_w * steps):
        c = step % steps * CHANNELS + tl.arange(0, CHANNELS)
        tap = step // steps
        i_w, i_h, i_d = tap % taps_w, tap // taps_w % taps_h, tap // (taps_w * taps_h)
        move_d, move_h, move_w = i_d * MOVE_D, i_h * MOVE_H, i_w * MOVE_W
        from_d, from_h, from_w = at_d + move_d, at_h + move_h, at_w + move_w
        meets = (from_d >= 0) & (from_d < depth) & (from_h >= 0) & (from_h < height) & (from_w >= 0) & (from_w < width)
        moved = move_d * input_d + move_h * input_h + move_w * input_w
        # The weight's axis that has stride 1 is known, and the input's where its channels are last.
        of_tap = (tap_d + i_d * PERIOD[0]) * weight_d + (tap_h + i_h * PERIOD[1]) * weight_h
        of_tap += (tap_w + i_w * PERIOD[2]) * weight_w
        of_first = of_tap + (c * weight_in if TRANSPOSED else own * weight_out)
        of_channel = c * (1 if CHANNELS_LAST else input_c)
        if ALIGNED:
            moved, of_first = tl.multiple_of(moved, 8), tl.multiple_of(of_first, 8)
        of_weight = of_first[:, None] + own[None, :] if TRANSPOSED else c[:, None] + of_first[None, :]
        is_channel, is_weight = own_pixels & tl.expand_dims(meets, P), None
        if not WHOLE:
            is_channel &= tl.expand_dims(c < channels, C)
            is_weight = (c < channels)[:, None] & (own < outputs)[None, :]
        a = tl.load(input + (rows + moved) + tl.expand_dims(of_channel, C), mask=is_channel, other=0.0)
        b = tl.load(weight + of_weight, mask=is_weight, other=0.0 if not WHOLE else None)
        if CHANNELS_LAST:
            sums = tl.dot(a.to(DOT), b.to(DOT), sums, input_precision=PRECISION)
        else:
            sums = tl.dot(tl.trans(b.to(DOT)), a.to(DOT), sums, input_precision=PRECISION)

    is_output = own < outputs
    channel = first + own
    if bias is not None:
        sums += tl.expand_dims(tl.load(bias + channel, mask=is_output, other=0.0).to(tl.float32), C)
    sums = activate(sums, slope, ACTIVATION)
    pixels = n * out_n + d * out_d + h * out_h + w * out_w
    if ALIGNED:
        pixels = tl.multiple_of(pixels, 8)
    of_channel = channel * (1 if CHANNELS_LAST else out_c)
    to = out + (tl.expand_dims(pixels, P) + tl.expand_dims(of_channel, C))
    tl.store(to, sums, mask=own_pixels & tl.expand_dims(is_output, C))


_MAPS = [
    "batch",
    "large_channels",
    "small_channels",
    "depth",
    "height",
    "width",
    "own_depth",
    "own_height",
    "own_width",
]
_MAP_STRIDES = [f"{tensor}_{axis}" for tensor in ("large", "small") for axis in "ncdhw"]


@triton.jit(do_not_specialize=["share", "groups", *_MAPS, *_MAP_STRIDES])
def _differentiate(
    out,
    large,
    small,
    share,
    batch,
    large_channels,
    small_channels,
    depth,
    height,
    width,
    own_depth,
    own_height,
    own_width,
    large_n,
    large_c,
    large_d,
    large_h,
    large_w,
    small_n,
    small_c,
    small_d,
    small_h,
    small_w,
    groups,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    LARGE_LAST: tl.constexpr,
    SMALL_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
    PLACES: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A tile of a group's weight gradient at one tap, the small map's channels by the large map's, over a share of the
    small map's pixels."""
    # Products of sizes and strides are of 64 bits.
    large_c, large_d, large_h = large_c.to(tl.int64), large_d.to(tl.int64), large_h.to(tl.int64)
    small_c, small_d, small_h = small_c.to(tl.int64), small_d.to(tl.int64), small_h.to(tl.int64)
    large_w, small_w = large_w.to(tl.int64), small_w.to(tl.int64)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    # Neighbours read the same pixels: first the taps, then the channels.
    unit = tl.program_id(0)
    tap, unit = unit % TAPS, unit // TAPS
    blocks = tl.cdiv(small_channels, ROWS)
    row, unit = unit % blocks * ROWS + tl.arange(0, ROWS), unit // blocks
    blocks = tl.cdiv(large_channels, COLUMNS)
    column, unit = unit % blocks * COLUMNS + tl.arange(0, COLUMNS), unit // blocks
    group, part = (unit % groups).to(tl.int64), (unit // groups).to(tl.int64)
    first_row, first_column = group * small_channels, group * large_channels
    k_w, k_h, k_d = tap % KERNEL[2], tap // KERNEL[2] % KERNEL[1], tap // (KERNEL[2] * KERNEL[1])
    k_w, k_h, k_d = k_w * DILATION[2] - PADDING[2], k_h * DILATION[1] - PADDING[1], k_d * DILATION[0] - PADDING[0]
    # The axis of pixels in each map's tile: the one whose neighbours are neighbours in memory is last.
    S: tl.constexpr = 1 if SMALL_LAST else 0
    L: tl.constexpr = 1 if LARGE_LAST else 0
    from_small, from_large = first_row * small_c, first_column * large_c
    if ALIGNED:
        from_small, from_large = tl.multiple_of(from_small, 8), tl.multiple_of(from_large, 8)
    small += from_small
    large += from_large
    is_row, is_column = tl.expand_dims(row < small_channels, 1 - S), tl.expand_dims(column < large_channels, 1 - L)
    of_small = tl.expand_dims(row * (1 if SMALL_LAST else small_c), 1 - S)
    of_large = tl.expand_dims(column * (1 if LARGE_LAST else large_c), 1 - L)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(share):
        at = (part * share + step).to(PLACES) * PIXELS + tl.arange(0, PIXELS)
        n, d, h, w = _pixels(at, own_depth, own_height, own_width)
        n, is_there = n.to(tl.int64), n < batch
        pixels = n * small_n + d * small_d + h * small_h + w * small_w
        if ALIGNED:
            pixels = tl.multiple_of(pixels, 8)
        is_small = tl.expand_dims(is_there, S)
        if not WHOLE:
            is_small &= is_row
        a = tl.load(small + (tl.expand_dims(pixels, S) + of_small), mask=is_small, other=0.0)
        d, h, w = d * STRIDE[0] + k_d, h * STRIDE[1] + k_h, w * STRIDE[2] + k_w
        meets = is_there & (d >= 0) & (d < depth) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        pixels = n * large_n + d * large_d + h * large_h + w * large_w
        if ALIGNED:
            pixels = tl.multiple_of(pixels, 8)
        is_large = tl.expand_dims(meets, L)
        if not WHOLE:
            is_large &= is_column
        b = tl.load(large + (tl.expand_dims(pixels, L) + of_large), mask=is_large, other=0.0)
        a, b = a.to(DOT), b.to(DOT)
        if SMALL_LAST:
            a = tl.trans(a)
        if not LARGE_LAST:
            b = tl.trans(b)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    rows = (part * groups * small_channels + first_row + row) * large_channels * TAPS
    to = out + (rows[:, None] + (column * TAPS + tap)[None, :])
    tl.store(to, sums, mask=(row < small_channels)[:, None] & (column < large_channels)[None, :])


def _walk(stride: int, dilation: int, transposed: int) -> tuple[int, int]:
    """How far the taps of a transposed convolution's phase are from each other along one axis, and the inverse of the
    dilation modulo that, both without their common factor with the stride: by it `_taps` finds a phase's first tap."""
    if not transposed:
        return 1, 0
    common = gcd(stride, dilation)
    period = stride // common
    return period, pow(dilation // common, -1, period) if period > 1 else 0


def _axes(geometry: Ints) -> dict[str, Ints]:
    """Kernel, stride, padding and dilation of three axes, as the kernels take them."""
    return {
        name: geometry[first : first + AXES]
        for name, first in zip(("KERNEL", "STRIDE", "PADDING", "DILATION"), range(0, 4 * AXES, AXES), strict=True)
    }


def _tile(size: int, most: int) -> int:
    return min(most, max(_LEAST_TILE, triton.next_power_of_2(size)))


def _products(dtype: torch.dtype) -> dict[str, Any]:
    """In what products are computed; the interpreter knows no bfloat16."""
    compute = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)
    exact = dtype != torch.float32 or factors_of(dtype) == EXACT
    return {"DOT": tl.float32 if triton.knobs.runtime.interpret else compute, "PRECISION": "ieee" if exact else "tf32"}


def _channels_innermost(weight: Tensor) -> Tensor:
    """The weight with the channels of its second axis next to each other."""
    weight = weight.detach()
    return weight if weight.stride(1) == 1 else weight.movedim(1, -1).contiguous().movedim(-1, 1)


def _is_last(tensor: Tensor) -> bool:
    """Whether channels are innermost in memory."""
    return tensor.stride(1) == 1 and tensor.shape[1] > 1


def _are_aligned(*numbers: int) -> bool:
    return all(number % _ALIGNMENT == 0 for number in numbers)


class Launch(NamedTuple):
    """A launch of a kernel: how many programs, its numbers, and what it is compiled for."""

    programs: int
    numbers: Ints
    options: dict[str, Any]


def _forward_launch(input: Tensor, weight: Tensor, plan: Plan, like: Tensor) -> Launch:
    """Of tensors of these shapes and strides, the weight with its channels innermost."""
    *_, groups, transposed = plan.geometry
    channels, outputs = input.shape[1] // groups, plan.output_shape[1] // groups
    axes = _axes(plan.geometry)
    pairs = zip(axes["STRIDE"], axes["DILATION"], strict=True)
    periods, inverses = zip(*(_walk(*pair, transposed) for pair in pairs), strict=True)
    size, own = sizes_of_axes(input), sizes_of_axes(like)
    phases = [min(stride, extent) if transposed else 1 for stride, extent in zip(axes["STRIDE"], own[2:], strict=True)]
    strides = axes["STRIDE"] if transposed else (1,) * AXES
    pixels = own[0] * prod(-(-extent // stride) for extent, stride in zip(own[2:], strides, strict=True))
    first, second, *of_taps = strides_of_axes(weight)
    of_group, of_output, of_channel = outputs * first, first, second
    if transposed:
        of_group, of_output, of_channel = channels * first, second, first
    laid = strides_of_axes(input), strides_of_axes(like)
    steps = [*(step for strides in laid for step in (strides[0], *strides[2:])), first, *of_taps]
    last = _is_last(like) and input.stride(1) == 1
    aligned = last and _are_aligned(channels, outputs, *steps)
    # Addresses of single elements take registers, and so do operands of float32.
    short = input.dtype.itemsize == 2
    tile = {
        "PIXELS": _tile(pixels, (128 if short else 64) if aligned else 32),
        "OUTPUTS": _tile(outputs, 64),
        "CHANNELS": _tile(channels, 32 if aligned else 16),
    }
    options = axes | {
        "PERIOD": periods,
        "INVERSE": inverses,
        "TRANSPOSED": bool(transposed),
        "CHANNELS_LAST": last,
        "ALIGNED": aligned,
        "WHOLE": channels % tile["CHANNELS"] == 0 and outputs % tile["OUTPUTS"] == 0,
        **_products(input.dtype),
        **tile,
    }
    programs = triton.cdiv(pixels, tile["PIXELS"]) * triton.cdiv(outputs, tile["OUTPUTS"]) * prod(phases) * groups
    sizes = size[0], channels, outputs, *size[2:], *own[2:]
    return Launch(programs, (*sizes, *laid[1], *laid[0], of_group, of_output, of_channel, *of_taps), options)


def prepare_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, activation: str = "none", slope: float = 0.0
) -> Callable[..., Tensor]:
    """What runs a planned convolution, transposed or not, of these shapes, strides and dtypes.

    Args:
        input, weight, bias: as of `cpu.prepare_forward`, on a card or, in the interpreter, on the CPU.
        plan: of the convolution.
        activation: a key of `reference.ACTIVATIONS`.
        slope: of leaky_relu.

    Returns:
        A function of (input, weight, bias, and anything) that gives the output.
    """
    like = output_like(input, weight, plan)
    launch = _forward_launch(input, _channels_innermost(weight), plan, like)
    shape, strides = plan.output_shape, like.stride()

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        output = input.new_empty_strided(shape, strides)
        tensors = output, input, _channels_innermost(weight), None if bias is None else bias.detach().contiguous()
        with current(input):
            _convolve[(launch.programs,)](
                *tensors, slope, *launch.numbers, ACTIVATION=activation, **launch.options, num_stages=_STAGES
            )
        return output

    return run


def _gradient_launch(large: Tensor, small: Tensor, plan: Plan) -> tuple[Launch, int]:
    """The launch, and how many parts of the gradient it makes."""
    groups = plan.geometry[-2]
    rows, columns = small.shape[1] // groups, large.shape[1] // groups
    axes, size, own = _axes(plan.geometry), sizes_of_axes(large), sizes_of_axes(small)
    short = large.dtype.itemsize == 2
    tile = {"ROWS": _tile(rows, 64), "COLUMNS": _tile(columns, 64 if short else 32), "PIXELS": 32 if short else 16}
    tiles = triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(columns, tile["COLUMNS"]) * groups * prod(axes["KERNEL"])
    pixels = own[0] * prod(own[2:])
    blocks = triton.cdiv(pixels, tile["PIXELS"])
    share = triton.cdiv(blocks, max(1, min(_PROGRAMS // tiles, blocks // _LEAST_BLOCKS)))
    parts = triton.cdiv(blocks, share)
    laid = strides_of_axes(large), strides_of_axes(small)
    last = _is_last(large), _is_last(small)
    steps = [step for strides in laid for step in (strides[0], *strides[2:])]
    options = axes | {
        "LARGE_LAST": last[0],
        "SMALL_LAST": last[1],
        "ALIGNED": all(last) and _are_aligned(rows, columns, *steps),
        "WHOLE": rows % tile["ROWS"] == 0 and columns % tile["COLUMNS"] == 0,
        "PLACES": tl.int32 if pixels + tile["PIXELS"] < 2**31 else tl.int64,
        **_products(large.dtype),
        **tile,
    }
    sizes = share, size[0], columns, rows, *size[2:], *own[2:]
    numbers = *sizes, *laid[0], *laid[1], groups
    return Launch(tiles * parts, numbers, options), parts


def prepare_weight_gradient(large: Tensor, small: Tensor, plan: Plan, weight_shape: Ints) -> Callable[..., Tensor]:
    """What gives the weight gradient, contiguous, of the planned convolution from `large` to `small`."""
    launch, parts = _gradient_launch(large, small, plan)
    dtype = large.dtype

    def run(large: Tensor, small: Tensor, *rest: Any) -> Tensor:
        shape, sums = (weight_shape, dtype) if parts == 1 else ((parts, *weight_shape), torch.float32)
        found = torch.empty(shape, dtype=sums, device=large.device)
        with current(large):
            _differentiate[(launch.programs,)](
                found, large, small, *launch.numbers, **launch.options, num_stages=_STAGES
            )
        return found if parts == 1 else found.sum(0).to(dtype)

    return run
