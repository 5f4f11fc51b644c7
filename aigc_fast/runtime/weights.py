"""How weights may be kept for generation, where they are not used as they are."""

from __future__ import annotations

from aigc_fast.runtime import native

WEIGHTS = "fp32", "bf16", "int8", "int4"
CODES = dict(zip(WEIGHTS, native.codes("weights", *(name.upper() for name in WEIGHTS)), strict=True))
AS_THEY_ARE = CODES["fp32"]


def check_weights(weights: str | None) -> None:
    """Raises ValueError unless weights can be kept so."""
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: expected None or one of {', '.join(map(repr, WEIGHTS))}")


def weights_code(module: object) -> int:
    """How a module's weights are kept, by its attribute `weights`, as csrc knows it."""
    name = getattr(module, "weights", None)
    check_weights(name)
    return AS_THEY_ARE if name is None else CODES[name]
