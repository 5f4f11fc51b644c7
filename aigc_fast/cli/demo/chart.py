"""Line and bar charts as SVG text that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 14, 40
MAX_POINTS = 400


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(count - 1, 1)
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Running mean over up to `window` values on either side."""
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    size = len(values)
    bounds = [(max(0, i - window), min(size, i + window + 1)) for i in range(size)]
    return [(total[end] - total[start]) / (end - start) for start, end in bounds]


def _thinned(count: int) -> list[int]:
    stride = max(1, math.ceil(count / MAX_POINTS))
    return sorted({*range(0, count, stride), count - 1}) if count else []


class _Axes:
    """Maps data to pixels and draws the frame."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def px(self, value: float) -> float:
        low, high = self.x
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1)

    def py(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1)

    def frame(self, x_label: str) -> list[str]:
        parts = []
        for tick in nice_ticks(*self.y):
            y = self.py(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
        for tick in nice_ticks(*self.x):
            parts.append(f'<text x="{self.px(tick):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{tick:.4g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        return parts

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> str:
        points = " ".join(f"{self.px(xs[i]):.1f},{self.py(ys[i]):.1f}" for i in _thinned(len(xs)))
        return f'<polyline class="{style}" points="{points}"/>'


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _legend(names: Sequence[str]) -> str:
    keys = "".join(f'<span class="key k{i}">{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{keys}</div>'


def line_chart(steps: Sequence[float], curves: Mapping[str, Sequence[float]], title: str, smooth: bool = True) -> str:
    """Curves over training steps: each value faint, their running mean strong.

    Args:
        steps: the horizontal position of every value.
        curves: values per name, each as long as `steps`; what is not finite is left out.
        title: what a screen reader says, and the caption.
        smooth: False for few values, which are strong themselves.
    """
    shown = {name: _finite(steps, values) for name, values in curves.items()}
    means = {name: smoothed(ys, max(1, len(ys) // 40) if smooth else 0) for name, (_, ys) in shown.items()}
    low, high = _range([value for values in means.values() for value in values])
    axes = _Axes((min(steps, default=0), max(steps, default=1)), (low, high))
    parts = axes.frame("training step")
    for index, (name, (xs, ys)) in enumerate(shown.items()):
        clipped = [min(max(value, low), high) for value in ys]
        parts.append(axes.line(xs, clipped, f"raw k{index}"))
        parts.append(axes.line(xs, means[name], f"mean k{index}"))
    return f"<figure>{_svg(parts, title)}{_legend(list(curves))}<figcaption>{escape(title)}</figcaption></figure>"


def _finite(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.5
    return (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin


def bar_chart(bars: Mapping[str, Sequence[float]], labels: Sequence[str], title: str) -> str:
    """Groups of bars, one group per label, one bar in it per name.

    Args:
        bars: values per name, each as long as `labels`, none negative.
        labels: what stands under each group.
        title: what a screen reader says, and the caption.
    """
    high = max((value for values in bars.values() for value in values), default=1.0)
    axes = _Axes((0, len(labels)), (0.0, high * 1.08 or 1.0))
    parts = axes.frame("")[: 2 * len(nice_ticks(*axes.y))]
    width = 0.8 / max(len(bars), 1)
    for index, values in enumerate(bars.values()):
        for group, value in enumerate(values):
            x, y = axes.px(group + 0.1 + index * width), axes.py(value)
            w, h = axes.px(width) - axes.px(0), axes.py(0) - y
            parts.append(f'<rect class="bar k{index}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/>')
    for group, label in enumerate(labels):
        x = axes.px(group + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{escape(label)}</text>')
    return f"<figure>{_svg(parts, title)}{_legend(list(bars))}<figcaption>{escape(title)}</figcaption></figure>"
