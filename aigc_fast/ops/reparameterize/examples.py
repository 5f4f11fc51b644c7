"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

from aigc_fast.ops.examples import Example, Examples, given

_LATENTS = Example(given(*[(64, 512)] * 2), given(*[(6, 7)] * 2))
EXAMPLES: Examples = dict.fromkeys(("reparameterize", "reparameterize_kl", "kl_standard_normal"), _LATENTS)
