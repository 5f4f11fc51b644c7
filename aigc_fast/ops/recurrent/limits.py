"""The numbers that `choice` and the kernels use.

They were estimated, not measured.
"""

from __future__ import annotations

# Multiply-adds of a step of one direction below which its units are not divided among threads, which would have to wait
# for each other at every step.
LEAST_STEP_WORK = 1 << 16

# Sequences in bfloat16 up to which weights, not products, take the time: of more, PyTorch multiplies them in tiles.
MOST_ROUNDED_BATCH = 1

# Multiply-adds of a cell's step below which the call costs more than the kernel.
LIGHT_STEP = 1 << 14
