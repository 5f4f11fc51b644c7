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
