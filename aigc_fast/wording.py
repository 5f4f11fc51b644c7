"""How numbers and names are told."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 20


def counted(count: int, plural: str) -> str:
    """`1 image`, `2 images`: a number and what it is of, whose plural ends in s."""
    return f"{count} {singular(plural) if count == 1 else plural}"


def singular(plural: str) -> str:
    """`image` of `images`, `class` of `classes`."""
    return plural.removesuffix("es") if plural.endswith("sses") else plural.removesuffix("s")


def told(error: BaseException) -> str:
    """`ValueError: x is wrong`: an error's kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def listed(names: Sequence[object], most: int = _MOST) -> str:
    """`a, b, c`, and where there are more than `most`, how many."""
    text = ", ".join(map(str, names[:most]))
    return text if len(names) <= most else f"{text}, … ({len(names)} in all)"


def together(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sized(nbytes: int) -> str:
    """`12.5 MiB`: how much memory."""
    return f"{nbytes / (1 << 20):.1f} MiB"


def three_digits(value: float) -> str:
    """`0.123`, `12.3`, `1234`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
