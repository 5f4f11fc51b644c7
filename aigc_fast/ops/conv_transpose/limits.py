"""The measured numbers that `choice` uses.

Where nothing else is said, they come from processors with AVX2 whose models were not recorded, with torch 2.13.0;
other levels inherit them, unmeasured. bench/test_bench_conv_transpose.py and bench/run.py measure them again.
"""

from __future__ import annotations

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
# No wider kernel's gradients were measured to win; the same machine.
WIDEST_KERNEL = 64
