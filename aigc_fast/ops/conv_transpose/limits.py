"""The measured numbers that `choice` uses.

Where nothing else is said, they come from processors with AVX2 whose models were not recorded, with torch 2.13.0;
other levels inherit them, unmeasured. bench/test_bench_conv_transpose.py, bench/run.py and bench/random_shapes.py
measure them again.
"""

from __future__ import annotations

from typing import NamedTuple

FEW_CHANNELS = 4
LEAST_GROUP_CHANNELS = 8
WIDE_CHANNELS = 16
WIDE_KERNEL = 4
# What pays in a strided convolution with a wide kernel: Winograd's windows for so many output channels, or a map so
# small that this share of the products meets its padding.
WINDOW_CHANNELS, MUCH_OUTSIDE = 64, 0.1
# PyTorch takes its light kernel for one image of at most so many elements, where a side of the kernel is at most this.
LIGHT_NUMEL, LIGHT_KERNEL = 20480, 3
# Below so many products of a weight and a pixel the call costs more than the kernel: without gradients and with them,
# of convolutions and of transposed ones.
LIGHT_PRODUCTS = (150_000, 1_400_000), (100_000, 500_000)
# From so many multiply-adds on, PyTorch's bfloat16 product is as fast as the processor.
LARGE_WORK = 1 << 28
# Below so many multiply-adds the cost of PyTorch's call decides over weight gradients.
SMALL_WORK = 2_000_000
# So many phases of a transposed convolution in one, two or three strided dimensions pay, each a product of its own;
# in channels_last fewer, as PyTorch's product need not rearrange there. AVX-512 BF16, Intel Xeon (family 6 model 207),
# 1 thread, torch 2.13.0, 2026-11-29: 21 channels with stride 32 take ten times as long as PyTorch's, with stride 8 in
# two dimensions, or 32 in one, less.
MOST_PHASES = (1, 32, 64, 64)
MOST_PHASES_CHANNELS_LAST = 4
# PyTorch takes 1.3 to 12 times as long for transposed convolutions of one channel without strides, on maps of more
# pixels than this; AVX-512, as LEFT_WIDE below.
ONE_CHANNEL_PIXELS = 64
# One channel per group in two dimensions, where PyTorch's kernel is as fast or faster: in channels_last up to this
# kernel (ours is at 0.66 to 1.5 of its speed, with gradients 0.55 to 1.3) and, with a stride, from so many pixels on
# (0.82 to 1.1); with stride 1 on maps of at most so many pixels, but so many numbers (0.56 to 1.2); and in bfloat16
# (0.35 to 1.2). Elsewhere ours is 1.05 to 29 times as fast, with gradients of wider kernels 1.8 to 40 times. AVX-512
# BF16, AMD EPYC (family 26 model 2), 2 threads, torch 2.13.0, 2026-11-30, 93 shapes in both layouts.
DEPTHWISE_KERNEL = 3
DEPTHWISE_STRIDED_PIXELS = 3136
DEPTHWISE_SMALL_PIXELS, DEPTHWISE_MANY = 196, 1 << 17
# No wider kernel's gradients were measured to win; the same machine.
WIDEST_KERNEL = 64

_ANY, _ENDLESS = range(1 << 62), 1 << 62


class Region(NamedTuple):
    """Convolutions without dilation that PyTorch computes faster.

    Attributes:
        dims: spatial dimensions.
        transposed, channels_last: None for both kinds.
        strided: whether the stride is more than 1; None for either.
        kernels: of the widest side of the kernel.
        channels: of the larger map: the input of a convolution, the output of a transposed one.
        pixels: of one image of the input.
        inputs, outputs: channels of the input and of the output, as `channels` a group's where there are groups.
        positions: of the input, pixels of all images together.
        algorithm: which of ours it would meet, one of "direct", "winograd", "narrow" and "col2im"; None for any.
        whole, multiple: of a transposed one, whether the output, or the kernel, is a multiple of the stride; None for
            either.
    """

    dims: int
    transposed: bool | None
    channels_last: bool | None
    strided: bool | None
    kernels: range
    channels: range = _ANY
    pixels: range = _ANY
    algorithm: str | None = None
    whole: bool | None = None
    multiple: bool | None = None
    inputs: range = _ANY
    outputs: range = _ANY
    positions: range = _ANY


# On three axes, from this kernel on, windows and taps are so many that PyTorch's takes 0.3 to 0.6 of the time of ours.
# Measured as LEFT_WIDE_ELSEWHERE.
_LEFT_ON_THREE_AXES = (
    Region(3, None, None, False, range(4, _ENDLESS), inputs=range(6, _ENDLESS), algorithm="direct"),
    Region(3, False, None, True, range(4, _ENDLESS), algorithm="winograd"),
)
# In float32 on AVX-512: Intel Xeon (family 6 model 207), 2 threads, torch 2.13.0, 2026-11-29; from 16 to 256 channels,
# 8 to 256 pixels wide, kernels of 1 to 7, strides of 1 and 2. Ours takes 0.2 to 0.95 of PyTorch's speed there.
LEFT_WIDE = (
    Region(1, False, False, False, range(4, _ENDLESS), channels=range(32), algorithm="winograd"),
    Region(2, True, None, False, range(5, _ENDLESS), algorithm="direct"),
    Region(2, False, True, False, range(5, _ENDLESS), algorithm="direct"),
    Region(2, False, False, False, range(7, _ENDLESS), algorithm="direct"),
    Region(2, False, False, False, range(5, 7), channels=range(32), algorithm="direct"),
    Region(2, False, False, False, range(5, 7), pixels=range(400), algorithm="direct"),
    Region(2, False, True, False, range(1, 2), pixels=range(400, _ENDLESS)),
    Region(2, True, False, False, range(1, 2), pixels=range(10_000, _ENDLESS)),
    Region(2, False, False, False, range(1, 2), channels=range(33)),
    Region(2, None, True, False, range(2, 5), channels=range(32), algorithm="winograd"),
    Region(2, None, True, False, range(2, 5), channels=range(128), pixels=range(40_000, _ENDLESS), algorithm="direct"),
    Region(2, None, True, False, range(2, 5), channels=range(64), pixels=range(10_000, _ENDLESS), algorithm="winograd"),
    Region(2, True, True, False, range(2, 5), channels=range(64), pixels=range(4_000, _ENDLESS), algorithm="winograd"),
    Region(2, False, False, False, range(2, 5), channels=range(32), pixels=range(10_000, _ENDLESS)),
    Region(2, False, True, True, range(3, 4)),
    Region(2, False, True, True, range(2, 3), pixels=range(900, _ENDLESS)),
    Region(2, False, True, True, range(4, 6), channels=range(49), pixels=range(900, _ENDLESS)),
    Region(2, None, None, True, range(4, 5), channels=range(17)),
    Region(2, False, False, True, range(3, 4), channels=range(32), pixels=range(10_000, _ENDLESS)),
    Region(2, True, True, True, range(3, 4), pixels=range(100, _ENDLESS), whole=True),
    Region(3, False, None, True, _ANY, channels=range(32), pixels=range(4096, _ENDLESS)),
    Region(3, True, True, True, _ANY, channels=range(64), pixels=range(1024, _ENDLESS)),
    Region(3, True, False, True, _ANY, channels=range(17), pixels=range(1024, _ENDLESS)),
    *_LEFT_ON_THREE_AXES,
)
_FEW, _SEVERAL = range(2, 5), range(2, _ENDLESS)
# Of up to 4 input channels on other makers' processors: 491 more on the machine of the table below, batches of 1 to 16.
# Ours takes 0.5 to 0.84 of PyTorch's speed there.
_LEFT_OF_FEW_ELSEWHERE = (
    Region(2, False, False, False, _ANY, inputs=_FEW, outputs=range(24, _ENDLESS), positions=range(20_000)),
    Region(2, False, True, False, _ANY, inputs=_FEW, outputs=range(28, _ENDLESS)),
    Region(2, True, True, False, _ANY, inputs=range(5), outputs=range(16, _ENDLESS), positions=range(2000, _ENDLESS)),
    Region(3, False, None, False, _ANY, inputs=_FEW, outputs=range(28, _ENDLESS), positions=range(41_473)),
    Region(3, False, None, True, _ANY, inputs=_FEW, positions=range(16_000, _ENDLESS)),
)
# Of transposed ones with a stride in channels_last whose outputs are whole, most of kernels that are a multiple of the
# stride: 1,180 more of strides 2, 4 and 8 on the machine of the table below. Ours takes 1.0 of PyTorch's speed where
# they are left, and 1.5 times it in the others.
_LEFT_OF_STRIDED_ELSEWHERE = (
    *(
        Region(dims, True, True, True, _ANY, inputs=range(5), outputs=range(16, _ENDLESS), whole=True)
        for dims in (2, 3)
    ),
    Region(2, True, True, True, range(2, 3), positions=range(2048, _ENDLESS), algorithm="direct", whole=True),
    Region(
        2,
        True,
        True,
        True,
        range(4, 5),
        positions=range(4096, _ENDLESS),
        algorithm="direct",
        whole=True,
        multiple=True,
    ),
    Region(
        2,
        True,
        True,
        True,
        range(8, _ENDLESS),
        outputs=range(33),
        positions=range(650, _ENDLESS),
        algorithm="direct",
        whole=True,
        multiple=True,
    ),
    Region(
        3,
        True,
        True,
        True,
        range(4, _ENDLESS),
        outputs=range(33),
        positions=range(1700, _ENDLESS),
        whole=True,
        multiple=True,
    ),
)
# The widest kernel of the sweep below.
WIDEST_ELSEWHERE = 7
# The same on other makers' processors, of one group with any number of channels but one: AMD EPYC (family 26 model 2),
# 2 threads, torch 2.13.0, 2026-11-30; 3,008 of batches of 1 and 8, 1 to 256 channels, 8 to 256 pixels wide (4 to 32 on
# three axes), kernels of 1 to 7, strides of 1 and 2. Ours takes 0.74 of PyTorch's speed there in the mean, and 2.1
# times it in the others.
LEFT_WIDE_ELSEWHERE = (
    Region(2, None, None, False, range(7, _ENDLESS), algorithm="direct"),
    Region(2, True, True, False, range(4, 7), algorithm="direct"),
    Region(2, None, True, False, _ANY, positions=range(8192, _ENDLESS), algorithm="direct"),
    Region(2, None, True, False, _ANY, inputs=range(17), positions=range(4096, _ENDLESS), algorithm="winograd"),
    Region(2, False, True, True, _ANY, positions=range(16384, _ENDLESS), algorithm="direct"),
    Region(2, True, True, True, _ANY, positions=range(16384, _ENDLESS), algorithm="direct", whole=True),
    Region(2, False, True, True, _ANY, inputs=range(17), positions=range(32768, _ENDLESS), algorithm="winograd"),
    Region(
        2,
        None,
        True,
        None,
        _ANY,
        inputs=range(8, _ENDLESS),
        outputs=range(8, _ENDLESS),
        positions=range(8192, _ENDLESS),
        algorithm="col2im",
        whole=True,
    ),
    Region(2, None, None, None, range(7, _ENDLESS), outputs=range(8, _ENDLESS), algorithm="col2im", whole=True),
    Region(2, False, True, False, _ANY, inputs=_FEW, outputs=range(16, _ENDLESS), positions=range(2048, _ENDLESS)),
    Region(2, True, True, None, range(3), inputs=_FEW, outputs=range(16, _ENDLESS), positions=range(4096, _ENDLESS)),
    Region(2, False, None, True, range(7, _ENDLESS), inputs=_FEW),
    *_LEFT_OF_FEW_ELSEWHERE,
    *_LEFT_OF_STRIDED_ELSEWHERE,
    *_LEFT_ON_THREE_AXES,
    Region(3, None, None, False, range(4, _ENDLESS), outputs=range(3, _ENDLESS), algorithm="col2im", whole=True),
    Region(3, None, None, True, range(4, _ENDLESS), outputs=range(8, _ENDLESS), algorithm="col2im", whole=True),
    Region(
        3, None, None, False, range(3, 4), inputs=range(48, _ENDLESS), outputs=range(6, _ENDLESS), algorithm="col2im"
    ),
    Region(3, None, True, None, range(2), positions=range(8192, _ENDLESS)),
    Region(3, None, True, None, _ANY, inputs=_FEW, outputs=range(16, _ENDLESS), positions=range(16384, _ENDLESS)),
    Region(3, False, None, True, range(4, _ENDLESS), inputs=range(2, 9), positions=range(16384, _ENDLESS)),
)
# Transposed ones with a stride up to this kernel are PyTorch's by that table alone, with groups or in channels_last up
# to so many phases: 690 more of strides 3 to 16 on the same machine, ours takes 3 times PyTorch's speed where kept.
MOST_PHASES_ELSEWHERE, WIDEST_STRIDED_ELSEWHERE = 64, 32
# With groups there: 1,651 of 2 to 16 groups. Ours takes 0.79 of PyTorch's speed there in the mean, and 2.2 times it in
# the others.
LEFT_GROUPED_ELSEWHERE = (
    Region(2, None, True, False, range(5, _ENDLESS)),
    Region(2, None, True, False, _ANY, positions=range(1296, _ENDLESS)),
    Region(3, None, True, False, _ANY),
    *(Region(dims, False, True, True, _ANY, positions=range(1296, _ENDLESS)) for dims in (2, 3)),
    *(Region(dims, True, True, True, range(5, _ENDLESS), outputs=range(9)) for dims in (2, 3)),
    Region(2, None, False, False, range(7, _ENDLESS), algorithm="direct"),
    *(Region(dims, True, False, False, _ANY, outputs=range(8)) for dims in (2, 3)),
    *(Region(dims, True, False, True, _ANY, outputs=range(6)) for dims in (2, 3)),
    *(Region(dims, False, False, None, _ANY, outputs=range(8, 9), positions=range(1024, _ENDLESS)) for dims in (2, 3)),
    Region(1, True, False, None, _ANY, outputs=range(3), positions=range(200, _ENDLESS)),
    Region(2, True, True, True, range(2, 3), outputs=range(8, _ENDLESS), positions=range(5184, _ENDLESS)),
    Region(3, None, False, False, range(4, _ENDLESS), algorithm="direct"),
    Region(3, False, False, True, _ANY, algorithm="winograd"),
)
# The same in bfloat16 whose pairs the processor multiplies, with groups or without: 2,790 on the same machine. Of the
# last 1,394 ours takes 0.8 of PyTorch's speed there in the mean, and 2.6 times it in the others.
LEFT_PAIRS_ELSEWHERE = (
    Region(2, None, True, False, _ANY, inputs=_SEVERAL, outputs=_SEVERAL, positions=range(4096, _ENDLESS)),
    Region(2, None, True, True, range(3), inputs=_SEVERAL, outputs=_SEVERAL, positions=range(4096, _ENDLESS)),
    Region(2, False, True, True, _ANY, inputs=_SEVERAL, outputs=_SEVERAL, positions=range(8192, _ENDLESS)),
    Region(2, True, True, False, range(5, _ENDLESS)),
    Region(2, None, True, False, _ANY, inputs=_FEW, outputs=_SEVERAL),
    Region(2, True, True, True, range(4, 7), inputs=_FEW, outputs=range(16, _ENDLESS)),
    # Of kernels 4 and 6 ours takes 0.28 to 0.98 of PyTorch's speed there, of 3, 5 and 7 it is 1.6 to 35 times as fast.
    Region(2, True, True, True, range(4, 7), outputs=range(8, 64), positions=range(4096, _ENDLESS), multiple=True),
    Region(2, False, False, None, _ANY, inputs=range(9), positions=range(400, _ENDLESS)),
    Region(3, False, False, None, _ANY),
    Region(3, None, True, False, _ANY),
)
LEFT_GROUPED_PAIRS_ELSEWHERE = (
    *LEFT_PAIRS_ELSEWHERE,
    Region(2, False, True, None, _ANY, positions=range(1000, _ENDLESS)),
)
# Weight gradients in float32 there: ours takes 0.55 to 0.93 of PyTorch's speed where the larger map has few channels
# and, by the layout, contiguous or channels_last, so many positions; and 0.62 to 0.72 where both maps have many
# channels, at few positions, through kernels so small.
GRADIENT_POSITIONS_ELSEWHERE = 40_000, 8192
GRADIENT_MANY_CHANNELS, GRADIENT_FEW_POSITIONS, GRADIENT_SMALL_KERNEL = 128, 2048, (7, 2, 0)
# With groups, 1,349 of 2 to 16: 0.94 of PyTorch's speed in planes on two and three axes through one pixel from so many
# positions on, and in channels_last from so many on, with fewer channels of a group than these in the larger and the
# smaller map; 2.35 times it in the others.
GROUPED_GRADIENT_POSITIONS = 8192, 4096
GROUPED_GRADIENT_CHANNELS = 8, 32
# In bfloat16, which ours makes of floats, with groups or without: 1,620. From so much work on, for more channels of a
# group in the smaller map than these, ours takes 1.0 of PyTorch's speed at fewer positions than these, and from more
# work on in channels_last and of many channels; 2.2 times it in the others.
ROUNDED_GRADIENT_WORK, ROUNDED_GRADIENT_CHANNELS, ROUNDED_GRADIENT_POSITIONS = 1 << 23, 10, 800
MUCH_ROUNDED_GRADIENT_WORK, MANY_ROUNDED_GRADIENT_CHANNELS = 50_000_000, 28
# In bfloat16 as products of floats, on the same machine: ours takes 0.4 to 0.95 of PyTorch's speed there, and 2.1 times
# it in the geometric mean of the others.
LEFT_BFLOAT16 = (
    Region(2, None, True, None, range(2, _ENDLESS), channels=range(17)),
    Region(2, None, None, False, range(7, _ENDLESS), pixels=range(300), algorithm="direct"),
    Region(2, None, True, False, range(1, 2), channels=range(33)),
)
# The weight gradient in channels_last there: with a kernel of one pixel ours wins up to so many pixels, from this
# kernel on with a stride alone; and without Winograd's windows none of so many channels wins with wide kernels.
GRADIENT_PIXELS, GRADIENT_KERNEL, GRADIENT_CHANNELS = 10_000, 5, 16
# Transposed ones whose kernel is as wide as the stride, in channels_last: ours wins up to so many pixels.
SMALL_MAP = 256
# Weight gradients of maps of so many pixels in channels_last, through Winograd's windows, win with so many channels:
# 0.7 of PyTorch's speed with 32, as fast with 64, 1.5 times as fast with 128.
WINDOWS_PIXELS, GRADIENT_WINDOW_CHANNELS = 40_000, 64
# From so many products of an input's element and an output's channel on, a convolution of what nearest-neighbour
# upsampling doubled is a transposed convolution; to so few channels, from so many positions on. With gradients from so
# much work and so many positions on. On one to three axes, 8 to 512 channels, batches of 1 to 16: 1.1 to 9 times the
# faster of PyTorch and our convolution of the doubled map, 0.2 to 1.0 below; with gradients 1.2 to 4.3 times. Under
# autocast to bfloat16, on two axes without gradients, 1.04 to 6.3 times.
# AVX-512 BF16, AMD EPYC (family 26 model 2), 2 threads, torch 2.13.0, 2026-11-30; other levels unmeasured.
MOST_DOUBLED_GROUPS = 1
DOUBLED_WORK = 1 << 19
FEW_DOUBLED_OUTPUTS, DOUBLED_POSITIONS = 4, 128
DOUBLED_WORK_OF_GRADIENTS, DOUBLED_POSITIONS_OF_GRADIENTS = 1 << 20, 1024
