"""The measured numbers that `choice` uses.

They come from processors with AVX2 and, where wide vectors are named, AVX-512 whose models were not recorded, with
torch 2.13.0; levels between and above inherit them, unmeasured. bench/test_bench_attention.py and bench/run.py measure
them again.
"""

from __future__ import annotations

# Below so many products of a query's element and a key the call costs more than the kernel, and PyTorch's costs less
# than ours; in 16 bits PyTorch is slow with a single query.
LIGHT_WORK, LIGHT_HALF, LIGHT_SINGLE_HALF = 400_000, 200_000, 20_000
# Wide heads, whose blocks do not stay in the first-level cache of processors without wide vectors, are PyTorch's: from
# this size on with so many queries, from that size on with so many or more.
WIDE_HEAD, WIDE_QUERIES = 97, range(129, 640)
WIDEST_HEAD, LEAST_WIDEST_QUERIES = 192, 64
# Up to so many positions of a batch PyTorch's inference call for projections and attention together is faster than the
# parts.
FEW_POSITIONS = 128
# From so many positions on, its call for a whole layer, which stores all scores, is slower than the layer's parts.
LEAST_LENGTH = 256
# From so many keys on, a single bfloat16 query with keys of its own is PyTorch's on Intel's processors that multiply
# bfloat16: Intel Xeon (family 6 model 207), AVX-512 BF16, 2 threads, torch 2.13.0, 2026-11-29; 1024 keys 0.53, 8192
# keys 0.62. AMD EPYC (family 26 model 2), 2026-11-30: 4.5 to 7.6.
MANY_KEYS = 512
# Wider heads of other sizes than its multiples are PyTorch's where nothing is hidden, on the same processors: of CPU
# time on one thread, same machine and day, 64 to 4096 queries; sizes 33, 40, 48, 72 and 80 0.61 to 0.93, 16, 32 and 96
# 0.98 to 1.01; the same sizes under a causal mask 1.04 to 1.11. AMD EPYC, 64 to 4096 queries of 40 and 80: 1.3 to 2.5.
EVEN_PAIRS = 32
