"""Where PyTorch's own convolution is as fast or faster: what automatic choice leaves to it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.limits import (
    DEPTHWISE_KERNEL,
    DEPTHWISE_MANY,
    DEPTHWISE_SMALL_PIXELS,
    DEPTHWISE_STRIDED_PIXELS,
    FEW_CHANNELS,
    GRADIENT_CHANNELS,
    GRADIENT_FEW_POSITIONS,
    GRADIENT_KERNEL,
    GRADIENT_MANY_CHANNELS,
    GRADIENT_PIXELS,
    GRADIENT_POSITIONS_ELSEWHERE,
    GRADIENT_SMALL_KERNEL,
    GRADIENT_WINDOW_CHANNELS,
    GROUPED_GRADIENT_CHANNELS,
    GROUPED_GRADIENT_POSITIONS,
    LARGE_WORK,
    LEAST_GROUP_CHANNELS,
    LEFT_BFLOAT16,
    LEFT_GROUPED_ELSEWHERE,
    LEFT_GROUPED_PAIRS_ELSEWHERE,
    LEFT_PAIRS_ELSEWHERE,
    LEFT_WIDE,
    LEFT_WIDE_ELSEWHERE,
    LIGHT_KERNEL,
    LIGHT_NUMEL,
    LIGHT_PRODUCTS,
    MANY_ROUNDED_GRADIENT_CHANNELS,
    MOST_PHASES,
    MOST_PHASES_CHANNELS_LAST,
    MOST_PHASES_ELSEWHERE,
    MUCH_OUTSIDE,
    MUCH_ROUNDED_GRADIENT_WORK,
    ONE_CHANNEL_PIXELS,
    ROUNDED_GRADIENT_CHANNELS,
    ROUNDED_GRADIENT_POSITIONS,
    ROUNDED_GRADIENT_WORK,
    SMALL_MAP,
    SMALL_WORK,
    WIDE_CHANNELS,
    WIDE_KERNEL,
    WIDEST_ELSEWHERE,
    WIDEST_KERNEL,
    WIDEST_STRIDED_ELSEWHERE,
    WINDOW_CHANNELS,
    WINDOWS_PIXELS,
    Region,
)
from aigc_fast.ops.conv_transpose.plan import AXES, Plan, memory_format
from aigc_fast.runtime import native
from aigc_fast.runtime.machine import is_intels
from aigc_fast.runtime.memory import MAPPED_ANEW
from aigc_fast.runtime.native import has_wide_vectors, rounds_natively
from aigc_fast.runtime.precision import EXACT, ROUNDED, factors_for

# Products of the taps, phase by phase or added up where they fall.
_OVER_TAPS = "direct", "col2im"
_grad_enabled = torch.is_grad_enabled
_float32 = torch.float32


def is_light(input: Tensor, weight: Tensor, groups: int, transposed: int, gradients: bool | None = None) -> bool:
    """Whether PyTorch takes its own kernel for small maps, whose call costs less than one of oneDNN's or of ours.

    The public functions ask before anything else looks at the arguments: this must cost little and not rely on them.

    Args:
        input: (N, C_in, ...).
        weight: of a convolution.
        groups: of the convolution.
        transposed: whether it is a transposed one.
        gradients: whether they will be asked for; by default what autograd says.
    """
    numel, size, kernel = input.numel(), input.shape, weight.shape
    products = weight.numel() * numel // (size[1] or 1)
    forward, both_ways = LIGHT_PRODUCTS[transposed]
    if products >= forward:
        if gradients is None:
            gradients = _grad_enabled() and (weight.requires_grad or input.requires_grad)
        if not gradients or products >= both_ways:
            return False
    if type(groups) is not int or groups != 1:
        return False
    if input.dtype is _float32:
        small = size[0] == 1 and numel <= LIGHT_NUMEL
        return small and (kernel[-1] <= LIGHT_KERNEL or len(kernel) == 3 or kernel[-2] <= LIGHT_KERNEL)
    return input.dtype is torch.bfloat16 and not has_wide_vectors() and not _pytorch_rounds_natively()


@cache
def _pytorch_rounds_natively() -> bool:
    """Whether PyTorch leaves all of bfloat16 to oneDNN; the level in use may lie below what the processor has."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _few_per_group(channels: int, groups: int) -> str | None:
    if groups == 1 or channels // groups >= LEAST_GROUP_CHANNELS:
        return None
    return f"{channels // groups} channels per group: too few to fill a vector"


def _too_few_channels(input: Tensor, plan: Plan) -> str | None:
    *_, groups, transposed = plan.geometry
    if few_per_group := _few_per_group(plan.output_shape[1], groups):
        return few_per_group
    one_phase = not transposed or max(plan.geometry[3:6]) == 1
    pytorchs_is_slow = transposed and max(plan.geometry[:3]) > 1 and prod(input.shape[2:]) > ONE_CHANNEL_PIXELS
    of_floats = _is_of_floats(input.dtype, plan) and has_wide_vectors()
    if input.shape[1] == groups and one_phase and not pytorchs_is_slow and of_floats:
        return "one input channel: too few for a product"
    return None


def _is_depthwise(input: Tensor, plan: Plan) -> bool:
    return 1 < plan.geometry[-2] == input.shape[1] == plan.output_shape[1]


def _depthwise_slower(input: Tensor, plan: Plan, channels_last: bool, gradients: bool = False) -> str | None:
    """Why PyTorch's depthwise convolution is preferred, or with all its gradients, or None."""
    kernel, stride, pixels = max(plan.geometry[:3]), max(plan.geometry[3:6]), prod(input.shape[2:])
    is_narrow = kernel <= DEPTHWISE_KERNEL
    if input.dtype != torch.float32 and input.dim() > 3 and (is_narrow or not gradients):
        return "depthwise in bfloat16: PyTorch's is faster"
    if input.dim() != 4 or (gradients and not is_narrow):
        return None
    if channels_last and (is_narrow or (stride > 1 and pixels >= DEPTHWISE_STRIDED_PIXELS)):
        return f"depthwise, kernel {kernel}, stride {stride}, in channels_last: PyTorch's is as fast"
    if stride == 1 and pixels <= DEPTHWISE_SMALL_PIXELS and input.numel() >= DEPTHWISE_MANY:
        return f"depthwise on {input.shape[1]} maps of {pixels} pixels: PyTorch's is as fast"
    return None


def _amx(dtype: torch.dtype) -> str | None:
    if dtype != torch.bfloat16 or native.level() != "amx":
        return None
    return "bfloat16 on a processor with AMX: PyTorch's kernels use its tiles"


def _is_of_floats(dtype: torch.dtype, plan: Plan) -> bool:
    """Whether it is floats whose products are added up, be the tensors in bfloat16."""
    return dtype == torch.float32 or factors_for(dtype, plan.uses) == EXACT


def _large_bfloat16(dtype: torch.dtype, plan: Plan, channels_last: bool) -> str | None:
    large = plan.multiply_adds >= LARGE_WORK and not plan.is_matrix
    in_pairs = native.level() == "avx512_bf16" and factors_for(dtype, plan.uses) == ROUNDED
    if dtype != torch.bfloat16 or not in_pairs or not channels_last or not large:
        return None
    return "bfloat16 in channels_last on a processor that multiplies it: PyTorch's product needs no rearranging"


def leave_gradients(input: Tensor, weight: Tensor, plan: Plan) -> str | None:
    """Why PyTorch had better have a convolution, transposed or not, with all its gradients, or None."""
    *_, groups, transposed = plan.geometry
    if is_light(input, weight, groups, transposed, gradients=True):
        return "small: PyTorch's call and its gradients cost less"
    if max(plan.geometry[:3]) > WIDEST_KERNEL:
        return f"kernel {max(plan.geometry[:3])}: wider than any that was measured"
    pixels_apart = max(plan.geometry[:6]) == 1 and memory_format(input, weight) != torch.contiguous_format
    if pixels_apart and input.dtype == torch.float32 and _regions_elsewhere(input.dtype, plan) is not None:
        # 12 of 2 to 2,147 million multiply-adds took 0.90 to 1.09 of PyTorch's speed; measured as the table.
        return "a kernel of one pixel in channels_last: PyTorch's products need no rearranging"
    if _is_depthwise(input, plan):
        return _depthwise_slower(input, plan, memory_format(input, weight) != torch.contiguous_format, gradients=True)
    if _regions_elsewhere(input.dtype, plan) is not None:
        return None
    return _few_per_group(max(input.shape[1], plan.output_shape[1]), groups)


def _strided_wins(plan: Plan, winograd: bool) -> bool:
    channels = plan.output_shape[1] // plan.geometry[-2]
    return plan.outside >= MUCH_OUTSIDE or (winograd and channels >= WINDOW_CHANNELS)


def _many_phases(plan: Plan, most: int) -> str | None:
    stride = plan.geometry[3:6]
    phases = prod(stride)
    return f"stride {max(stride)}: {phases} phases of few products each" if phases > most else None


def _is_swept(plan: Plan) -> bool:
    """Whether it is of the kind that the tables of regions were measured of, whatever its groups: without dilation."""
    return max(plan.geometry[9:12]) == 1 and not plan.is_matrix


def _regions_elsewhere(dtype: torch.dtype, plan: Plan) -> Sequence[Region] | None:
    """The table of other makers' processors than Intel's, where it says all there is to say of the convolution."""
    if not _is_swept(plan) or not has_wide_vectors() or is_intels():
        return None
    *_, groups, transposed = plan.geometry
    kernel = max(plan.geometry[:3])
    if dtype == torch.float32:
        widest = WIDEST_STRIDED_ELSEWHERE if transposed and max(plan.geometry[3:6]) > 1 else WIDEST_ELSEWHERE
        return None if kernel > widest else LEFT_GROUPED_ELSEWHERE if groups > 1 else LEFT_WIDE_ELSEWHERE
    in_pairs = dtype == torch.bfloat16 and native.level() == "avx512_bf16" and not _is_of_floats(dtype, plan)
    if not in_pairs or kernel > WIDEST_ELSEWHERE:
        return None
    return LEFT_GROUPED_PAIRS_ELSEWHERE if groups > 1 else LEFT_PAIRS_ELSEWHERE


def _lies_where_left(input: Tensor, plan: Plan, channels_last: bool, algorithm: str, regions: Sequence[Region]) -> bool:
    """Whether the convolution lies in a region where PyTorch's was measured to be faster."""
    *_, groups, transposed = plan.geometry
    kernel, stride = plan.geometry[:3], plan.geometry[3:6]
    inputs, outputs = input.shape[1] // groups, plan.output_shape[1] // groups
    channels = outputs if transposed else inputs
    dims, pixels, strided = input.dim() - 2, prod(input.shape[2:]), max(stride) > 1
    whole = all(size % step == 0 for size, step in zip(plan.output_shape[2:], stride[AXES - dims :], strict=True))
    multiple = all(size % step == 0 for size, step in zip(kernel, stride, strict=True))
    return any(
        region.dims == dims
        and region.transposed in (None, transposed)
        and region.channels_last in (None, channels_last)
        and region.strided in (None, strided)
        and max(kernel) in region.kernels
        and channels in region.channels
        and pixels in region.pixels
        and inputs in region.inputs
        and outputs in region.outputs
        and pixels * input.shape[0] in region.positions
        and region.algorithm in (None, algorithm)
        and region.whole in (None, whole)
        and region.multiple in (None, multiple)
        for region in regions
    )


def _lies_where_intels_left_it(input: Tensor, plan: Plan, channels_last: bool, algorithm: str) -> bool:
    fits = (
        _is_of_floats(input.dtype, plan)
        and _is_swept(plan)
        and plan.geometry[-2] == 1
        and min(input.shape[1], plan.output_shape[1]) > FEW_CHANNELS
    )
    if not (fits and has_wide_vectors() and algorithm in (*_OVER_TAPS, "winograd")):
        return False
    regions = LEFT_WIDE if input.dtype == torch.float32 else LEFT_BFLOAT16
    return _lies_where_left(input, plan, channels_last, "direct" if algorithm in _OVER_TAPS else algorithm, regions)


def _slower_of_few_or_strided(input: Tensor, plan: Plan, channels_last: bool, algorithm: str) -> str | None:
    *_, groups, transposed = plan.geometry
    in_channels, kernel, stride = input.shape[1] // groups, plan.geometry[:3], plan.geometry[3:6]
    few = in_channels <= FEW_CHANNELS and not plan.is_matrix
    if few and (not transposed or max(stride) == 1) and channels_last:
        return f"{in_channels} input channels: too few for a product"
    strided = not transposed and max(stride) > 1 and input.dtype == torch.float32
    # Memory that is mapped anew is ours in huge pages.
    is_small = prod(plan.output_shape) * input.dtype.itemsize < MAPPED_ANEW
    if few and strided and (is_small or has_wide_vectors()):
        return f"{in_channels} input channels and a stride of {max(stride)}: too few products for each output"
    if strided and max(kernel) > WIDE_KERNEL and not _strided_wins(plan, algorithm == "winograd"):
        return f"a plain convolution with stride {max(stride)} and kernel {max(kernel)}: PyTorch's is as fast"
    return None


def _faster_with_wide_vectors(plan: Plan) -> str:
    kernel, stride = max(plan.geometry[:3]), max(plan.geometry[3:6])
    return f"kernel {kernel}, stride {stride}: PyTorch's is faster with wide vectors"


def _slower_elsewhere(
    input: Tensor, plan: Plan, channels_last: bool, algorithm: str, regions: Sequence[Region]
) -> str | None:
    """Why PyTorch's forward is preferred on other makers' processors than Intel's, or None."""
    *_, groups, transposed = plan.geometry
    if groups == 1 and (reason := _too_few_channels(input, plan)):
        return reason
    if _lies_where_left(input, plan, channels_last, algorithm, regions):
        return _faster_with_wide_vectors(plan)
    # In planes of one group no number of phases was too many, nor where each makes pixels of its own for few channels.
    apart = plan.geometry[:3] == plan.geometry[3:6] and plan.output_shape[1] <= FEW_CHANNELS
    bounded = transposed and not apart and (groups > 1 or channels_last)
    reason = _many_phases(plan, MOST_PHASES_ELSEWHERE) if bounded else None
    return reason or _large_bfloat16(input.dtype, plan, channels_last)


def forward_slower(input: Tensor, weight: Tensor, plan: Plan, algorithm: str) -> str | None:
    """Why PyTorch's forward is preferred for this convolution or transposed convolution, or None.

    Args:
        input: (N, C_in, ...).
        weight: of the convolution.
        plan: of the convolution.
        algorithm: of ours, one of "direct", "winograd", "narrow", "col2im", "depthwise" and "other".
    """
    *_, groups, transposed = plan.geometry
    kernel, stride = plan.geometry[:3], plan.geometry[3:6]
    channels_last = memory_format(input, weight) != torch.contiguous_format
    if is_light(input, weight, groups, transposed, gradients=False):
        return "small: PyTorch's call costs less"
    if algorithm == "depthwise":
        return _depthwise_slower(input, plan, channels_last)
    if (regions := _regions_elsewhere(input.dtype, plan)) is not None:
        return _slower_elsewhere(input, plan, channels_last, algorithm, regions)
    if reason := _too_few_channels(input, plan) or _slower_of_few_or_strided(input, plan, channels_last, algorithm):
        return reason
    if _lies_where_intels_left_it(input, plan, channels_last, algorithm):
        return _faster_with_wide_vectors(plan)
    apart = kernel == stride and plan.output_shape[1] <= FEW_CHANNELS
    if transposed and algorithm in _OVER_TAPS and not apart:
        strided = sum(step > 1 for step in stride)
        most = MOST_PHASES_CHANNELS_LAST if channels_last else MOST_PHASES[strided]
        if reason := _many_phases(plan, most):
            return reason
    small_map = has_wide_vectors() and prod(input.shape[2:]) <= SMALL_MAP
    if transposed and kernel == stride and channels_last and not small_map:
        return "kernel and stride are equal and the layout channels_last: PyTorch's product needs no rearranging"
    left = _amx(input.dtype) if not transposed or plan.is_matrix else None
    return left or _large_bfloat16(input.dtype, plan, channels_last)


def slower_on_a_card(*args: Any) -> str:
    """Why automatic choice leaves every convolution on a card to PyTorch, which takes cuDNN's kernels."""
    return "PyTorch's cuDNN is the choice until a card was measured on which ours is faster"


def _direct_weight_gradient_wins(channels: int, pixels: int, channels_last: bool, plan: Plan) -> bool:
    kernel, stride = max(plan.geometry[:3]), max(plan.geometry[3:6])
    if not has_wide_vectors():
        return channels >= WIDE_CHANNELS or channels == 1
    if kernel >= GRADIENT_KERNEL and stride == 1 and (channels_last or channels <= GRADIENT_CHANNELS):
        return False
    if channels_last:
        return channels >= GRADIENT_CHANNELS and (kernel > 1 or pixels < GRADIENT_PIXELS)
    return channels > FEW_CHANNELS or (channels > 1 and (stride == 1 or kernel < WIDE_KERNEL))


def _weight_gradient_wins_elsewhere(large: Tensor, small: Tensor, plan: Plan, channels_last: bool) -> bool:
    positions = prod(large.shape[2:]) * large.shape[0]
    groups, kernel = plan.geometry[-2], max(plan.geometry[:3])
    if groups > 1:
        few_larger, few_smaller = GROUPED_GRADIENT_CHANNELS
        few = large.shape[1] < few_larger * groups and small.shape[1] < few_smaller * groups
        slow = few if channels_last else kernel == 1 and large.dim() > 3
        return not slow or positions < GROUPED_GRADIENT_POSITIONS[channels_last]
    if large.shape[1] <= FEW_CHANNELS and positions >= GRADIENT_POSITIONS_ELSEWHERE[channels_last]:
        return False
    many = min(large.shape[1], small.shape[1]) >= GRADIENT_MANY_CHANNELS and positions < GRADIENT_FEW_POSITIONS
    return not (many and kernel <= GRADIENT_SMALL_KERNEL[large.dim() - 3])


def _rounded_gradient_wins(large: Tensor, small: Tensor, plan: Plan, channels_last: bool) -> bool:
    """Whether ours wins in bfloat16 on other makers' processors than Intel's."""
    work, per_group = plan.multiply_adds, small.shape[1] // plan.geometry[-2]
    if work < ROUNDED_GRADIENT_WORK or per_group <= ROUNDED_GRADIENT_CHANNELS:
        return True
    if prod(large.shape[2:]) * large.shape[0] < ROUNDED_GRADIENT_POSITIONS:
        return False
    return work < MUCH_ROUNDED_GRADIENT_WORK or not (channels_last or per_group > MANY_ROUNDED_GRADIENT_CHANNELS)


def _weight_gradient_is_as_fast(channels: int, plan: Plan) -> str:
    return f"{channels} channels of the larger map, kernel {plan.geometry[:3]}: PyTorch's weight gradient is as fast"


def weight_gradient_slower(large: Tensor, small: Tensor, plan: Plan, algorithm: str) -> str | None:
    """Why PyTorch's weight gradient is preferred for the convolution from `large` to `small`, or None.

    Args:
        large, small: the two maps.
        plan: of the convolution.
        algorithm: of ours, one of "direct", "winograd" and "depthwise".
    """
    winograd = algorithm == "winograd"
    if algorithm == "depthwise":
        return None
    channels_last = memory_format(large, small) != torch.contiguous_format
    channels, pixels = large.shape[1] // plan.geometry[-2], prod(large.shape[2:])
    if _regions_elsewhere(large.dtype, plan) is not None:
        wins_elsewhere = _weight_gradient_wins_elsewhere if large.dtype == torch.float32 else _rounded_gradient_wins
        wins = plan.multiply_adds < SMALL_WORK or wins_elsewhere(large, small, plan, channels_last)
        return None if wins else _weight_gradient_is_as_fast(channels, plan)
    if not _is_of_floats(large.dtype, plan) and rounds_natively() and not plan.is_matrix:
        return "bfloat16 on a processor that multiplies it: PyTorch's weight gradient does so, ours computes in float32"
    thin = channels_last and pixels >= WINDOWS_PIXELS and channels < GRADIENT_WINDOW_CHANNELS
    wins = (
        (winograd and not (thin and has_wide_vectors()))
        or plan.is_matrix
        or plan.multiply_adds < SMALL_WORK
        or large.dtype == torch.bfloat16
        or (not winograd and _direct_weight_gradient_wins(channels, pixels, channels_last, plan))
    )
    if not wins:
        return _weight_gradient_is_as_fast(channels, plan)
    return _amx(large.dtype) or _few_per_group(small.shape[1], plan.geometry[-2])
