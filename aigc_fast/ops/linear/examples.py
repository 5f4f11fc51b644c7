"""Calls of this op's function: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

from aigc_fast.ops.examples import Example, Examples, given

EXAMPLES: Examples = {
    "linear": Example(
        given((2, 197, 768), (3072, 768), (3072,), activation="gelu"),
        given((3, 7, 5), (6, 5), (6,), activation="silu"),
    )
}
