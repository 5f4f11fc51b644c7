"""The measured numbers that `choice` uses.

AVX-512 BF16 without AMX, Intel Xeon (family 6 model 207), 1 and 2 threads, torch 2.13.0, 2026-11-29; other levels with
wide vectors inherit those of float32, unmeasured. `python bench/run.py --op linear` measures again.
"""

from __future__ import annotations

# Products of a weight and a row below which PyTorch's call costs less, in float32 and in bfloat16.
LIGHT_PRODUCTS, LIGHT_PRODUCTS_BFLOAT16 = 1 << 19, 1 << 16
# Rows in float32 for which kept weights pay, 1.1 to 2.0 times PyTorch's speed: of large weights, and of others. Of one
# or two rows PyTorch reads the weights as fast (0.5 to 0.9), and from 64 on its product is as fast as the processor.
ROWS_OF_LARGE, ROWS_OF_OTHERS = range(4, 49), range(16, 49)
LARGE_WEIGHT, LEAST_WEIGHT = 1 << 20, 1 << 17
# Fewer rows than this are not worth packing the weights for: PyTorch takes those that are not kept.
ROWS_WORTH_PACKING = 256
