"""The twin of `torch.nn.functional`: the same names and signatures, on aigc_fast's kernels where they win."""

from aigc_fast.ops.random import dropout, rand, randn
from aigc_fast.ops.reparameterize import kl_standard_normal, reparameterize, reparameterize_kl

__all__ = ["dropout", "kl_standard_normal", "rand", "randn", "reparameterize", "reparameterize_kl"]
