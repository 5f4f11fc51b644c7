"""The numbers that `choice` and the kernels use; where nothing else is said they were estimated, not measured."""

from __future__ import annotations

# Multiply-adds of a step of one direction below which its units are not divided among threads, which would have to wait
# for each other at every step.
LEAST_STEP_WORK = 1 << 16

# Layers of one direction go through a sequence together, each a chunk of so many steps behind the one below it, where
# that takes less time by this: the waits of a divided step cost so many multiply-adds, and the first chunks are waited
# for. A thread's part of a layer's hidden weights fills at most such a share of its second-level cache: what goes round
# at every step is then read from there. 0 has layers follow each other always. Two layers of 64 to 128 units took 0.6
# to 0.95 of the time so, of 256 (LSTM, GRU) 1 to 1.15: level avx512_bf16, 2 threads of an Intel Xeon (family 6 model
# 207), torch 2.13.0, 2026-11-29.
WAIT_WORK, WAVE_STEPS, WAVE_SHARE = 1 << 13, 16, 0.3

# Sequences in bfloat16 up to which weights, not products, take the time: of more, PyTorch multiplies them in tiles.
MOST_ROUNDED_BATCH = 1

# Sequences of float32 from which an LSTM with gradients is PyTorch's on other makers' processors than Intel's: 0.79 to
# 1.3 of its speed, mostly below 1; fewer 1.1 to 1.9. Of so few units, and so many in all rows together, ours are 1.26
# to 1.38 times as fast even so: what oneDNN keeps is mapped anew at every call then. AMD EPYC (family 26 model 2),
# AVX-512 BF16, 2 threads, torch 2.13.0, 2026-11-30, 32 to 512 units.
LEAST_GRADIENT_BATCH = 8
FEW_GRADIENT_UNITS, MANY_GRADIENT_UNITS = 128, 1 << 20

# Steps up to which a call with gradients costs more than PyTorch's, which makes a few calls of each step. Without gates
# PyTorch's takes 0.57 of our time for one step, 0.87 for two and 1.07 for three; with a GRU's 0.83 for one and 1.24 for
# two. The same processor, 1 to 64 sequences, 16 to 512 units.
FEW_STEPS_WITHOUT_GATES, FEW_STEPS_WITH_GATES = 2, 1

# A cell's step: multiply-adds below which the call costs more than the kernel, and weights beyond which they do not
# stay in the second-level cache beside PyTorch's, which the call looks through for changes. Of CPU time on one thread,
# AVX-512 BF16, Intel Xeon, torch 2.13.0, 2026-11-29: LSTM and GRU, one row, 32 to 256 units; a cell without gates lost
# at all of them.
LIGHT_STEP, HEAVY_STEP = 1 << 15, 1 << 18

# Bytes of shared memory that a CUDA block takes at most, for weights first of all: as many as any card has.
MOST_SHARED = 1 << 20
