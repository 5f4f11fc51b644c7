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
# On other makers' processors PyTorch's products of float32 are MKL's too, at half of this package's speed: from so many
# products and weights on ours are 1.2 to 4.3 times PyTorch's, 0.6 to 1.0 below; with gradients, of weights that are
# packed anew in every step, 1.35 to 1.95 times from so many products on, 0.9 to 1.1 below. AMD EPYC (family 26 model
# 2), AVX-512 BF16, 2 threads, torch 2.13.0, 2026-11-30; other levels with wide vectors inherit them, unmeasured.
FOREIGN_PRODUCTS, FOREIGN_WEIGHT = 1 << 21, 1 << 12
FOREIGN_PRODUCTS_OF_GRADIENTS = 1 << 26
# There an encoder layer at inference runs on its parts 1.2 to 2.1 times as fast as by PyTorch's one call from so many
# products or weights of its first linear layer on, 0.76 to 1.02 below: widths of 64 to 768, 1 to 788 rows.
FOREIGN_LAYER_PRODUCTS, FOREIGN_LAYER_WEIGHT = 1 << 23, 1 << 18
# In bfloat16 there, so few inputs make so many outputs at 0.4 to 0.97 of PyTorch's speed; elsewhere ours takes 1.0 to
# 2.1 times it. AMD EPYC as above, 16 to 4,096 rows, 16 to 256 inputs, 16 to 3,072 outputs.
FEW_INPUTS_BFLOAT16, MANY_OUTPUTS_BFLOAT16 = 64, 1 << 18
# Fewer rows than this are not worth packing the weights for: PyTorch takes those that are not kept.
ROWS_WORTH_PACKING = 256
