"""The numbers that `choice` and the kernels use.

They were estimated, not measured.
"""

from __future__ import annotations

# Multiply-adds of a step of one direction below which its units are not divided among threads, which would have to wait
# for each other at every step.
LEAST_STEP_WORK = 1 << 16
