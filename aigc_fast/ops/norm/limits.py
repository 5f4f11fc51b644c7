"""The measured numbers that `choice` uses.

AVX-512 BF16, Intel Xeon (family 6 model 207), 1 and 2 threads, torch 2.13.0, 2026-11-29; other levels inherit them,
unmeasured. `python bench/run.py --op norm` measures again.
"""

from __future__ import annotations

# Elements from which a norm of groups pays where no gradients are asked for.
GROUP_NUMEL = 1 << 16
# The same with gradients, which PyTorch records at half the cost of a call: of groups, and of single channels, of
# which PyTorch makes a batch norm.
GROUP_TRAINED_NUMEL, CHANNEL_TRAINED_NUMEL = 1 << 18, 1 << 17
# Elements and channels of an image from which, in channels_last and float32, PyTorch's gradients are as fast.
LARGE_IMAGE, MANY_CHANNELS = 1 << 20, 256
# Elements of a row, and of all rows, from which a norm of rows in 16 bits pays.
ROW_LENGTH, ROWS_NUMEL = 256, 1 << 18

# On other makers' processors than Intel's: AMD EPYC (family 26 model 2), AVX-512 BF16, 2 threads, torch 2.13.0,
# 2026-11-30; 2,419 norms of groups and of single channels, 4,000 to 6,000,000 elements. In channels_last PyTorch's
# kernels take a group's channels in whole vectors of so many numbers, and in 16 bits the others one by one: ours is 1.3
# to 12 times as fast there. In float32 with an activation ours wins below so many channels of a group, with gradients
# below the second number. In planes without an activation ours wins in 16 bits from so many elements on; with one and
# with gradients from so many elements in float32, of so many pixels in 16 bits. Elsewhere ours takes 0.5 to 1.0 of
# PyTorch's speed.
VECTOR_ELSEWHERE = 16
ACTIVATED_CHANNELS_ELSEWHERE = 48, 8
PLAIN_NUMEL_ELSEWHERE, TRAINED_NUMEL_ELSEWHERE, TRAINED_PIXELS_ELSEWHERE = 1 << 19, 1 << 21, 2048
# Pixels of a single channel up to which PyTorch's gradients are as fast there, in float32 and in 16 bits.
FEW_PIXELS_ELSEWHERE = 64, 256
