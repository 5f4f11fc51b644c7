"""Typical calls: what `explain` and `doctor` show, and tests go through."""

from __future__ import annotations

from aigc_fast.ops.examples import Examples, tensors

EXAMPLES: Examples = {
    "reparameterize": tensors(2, 64, 512),
    "reparameterize_kl": tensors(2, 64, 512),
    "kl_standard_normal": tensors(2, 64, 512),
}
