"""Rotations of queries and keys by their positions (Su et al., "RoFormer", 2021), as configurations describe them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

KINDS = ("default", "linear", "llama3", "yarn")

Settings = Mapping[str, Any]

# Frequencies take memory, also of models that are built without.
_LARGEST, _GREATEST = 1 << 16, 1e30


def frequencies(rope: Settings, size: int, context: int) -> tuple[Tensor, float]:
    """What positions are multiplied by.

    Args:
        rope: transformers' `rope_parameters`: "rope_type", one of `KINDS`, "rope_theta", and what that kind takes.
        size: of a head.
        context: positions that the model was made for.

    Returns:
        float32 (size / 2,) on the CPU, and what cosines and sines are multiplied by.

    Raises:
        ValueError: for an unknown kind, or a number that is missing or out of range.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"rope: rope_type is {kind!r}: expected one of {', '.join(KINDS)}")
    if size > _LARGEST:
        raise ValueError(f"rope: heads of {size}: expected at most {_LARGEST}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"rope: partial_rotary_factor is {rope['partial_rotary_factor']!r}: expected 1.0")
    # On the CPU where the model is built without memory, too.
    places = torch.arange(0, size, 2, dtype=torch.int64, device="cpu").float() / size
    plain = 1.0 / (_number(rope, "rope_theta") ** places)
    return _SCALINGS[kind](plain, rope, size, context)


def _default(plain: Tensor, rope: Settings, size: int, context: int) -> tuple[Tensor, float]:
    return plain, 1.0


def _linear(plain: Tensor, rope: Settings, size: int, context: int) -> tuple[Tensor, float]:
    return plain / _number(rope, "factor"), 1.0


def _llama3(plain: Tensor, rope: Settings, size: int, context: int) -> tuple[Tensor, float]:
    factor, low, high = (_number(rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    before = _number(rope, "original_max_position_embeddings", context)
    if high == low:
        raise ValueError(f"rope: high_freq_factor is {high}: expected another than low_freq_factor")
    lengths = 2 * math.pi / plain
    smooth = (before / lengths - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    found = torch.where(lengths > before / low, plain / factor, plain)
    return torch.where((lengths >= before / high) & (lengths <= before / low), between, found), 1.0


def _yarn(plain: Tensor, rope: Settings, size: int, context: int) -> tuple[Tensor, float]:
    """Peng et al., "YaRN: efficient context window extension of large language models", 2023."""
    before = _number(rope, "original_max_position_embeddings", context)
    factor = _number(rope, "factor", context / before)
    base = _number(rope, "rope_theta")
    low, high = (
        size * math.log(before / (_number(rope, name, default) * 2 * math.pi)) / (2 * math.log(base))
        for name, default in (("beta_fast", 32), ("beta_slow", 1))
    )
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    span = high - low if high != low else 0.001
    share = ((torch.arange(size // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    return plain / factor * share + plain * (1 - share), _yarn_scale(rope, factor)


def _yarn_scale(rope: Settings, factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")
    scales = rope.get("mscale"), rope.get("mscale_all_dim")

    def scale(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    return scale(scales[0]) / scale(scales[1]) if all(scales) else scale(1.0)


_SCALINGS: dict[str, Callable[[Tensor, Settings, int, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _number(rope: Settings, name: str, default: float | None = None) -> float:
    value = rope.get(name, default)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _GREATEST:
        raise ValueError(f"rope: {name} is {value!r}: expected a number above 0")
    return float(value)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns each head's first half of numbers with its second.

    Args:
        x: (batch, heads, length, size).
        cosines, sines: (batch, 1, length, size / 2).
    """
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)
