"""Charts as SVG text that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 14, 40
MAX_POINTS = 400
COLOURS = 8
EVEN = 0.03
"""How far from 1 a ratio of times is told as a gain or a loss."""


def verdict(ratio: float) -> str:
    """The style of a ratio of times: "win", "loss", or "even" where it is neither."""
    return "win" if ratio >= 1 + EVEN else "loss" if ratio < 1 - EVEN else "even"


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


def _svg(parts: Sequence[str], title: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _legend(names: Sequence[str]) -> str:
    keys = "".join(f'<span class="key k{i % COLOURS}">{escape(name)}</span>' for i, name in enumerate(names))
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


@dataclass(frozen=True)
class Interval:
    """A value with its spread, in a line of a chart of its own.

    Attributes:
        label: what stands before it.
        median: where its mark is.
        low: where its whisker begins.
        high: where it ends.
    """

    label: str
    median: float
    low: float
    high: float


def log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2 and 5 times the powers of ten those in [low, high]; powers alone where that is many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [
        steps * 10.0**power for power in range(first, last + 1) for steps in ((1, 2, 5) if last - first <= 3 else (1,))
    ]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def interval_chart(intervals: Sequence[Interval], title: str, unit: str = "×") -> str:
    """Positive values with their spreads on a logarithmic axis, one under the other; 1 is marked.

    Args:
        intervals: from top to bottom.
        title: what a screen reader says, and the caption.
        unit: what follows a number.
    """
    line, labels, width, room = 20, 390, 960, 64
    height, right = 34 + line * len(intervals), width - room
    values = [value for each in intervals for value in (each.low, each.high, 1.0)]
    low, high = math.log(min(values, default=1.0) / 1.1), math.log(max(values, default=1.0) * 1.1)

    def px(value: float) -> float:
        return labels + (right - labels) * (math.log(value) - low) / (high - low)

    parts = []
    for tick in log_ticks(math.exp(low), math.exp(high)):
        style = "one" if tick == 1 else "grid"
        parts.append(f'<line class="{style}" x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="4" y2="{height - 26}"/>')
        parts.append(f'<text x="{px(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:g}{unit}</text>')
    for index, each in enumerate(intervals):
        y, kind = 14 + line * index, verdict(each.median)
        parts.append(
            f"<g><title>{escape(each.label)}: {each.median:.2f}{unit} ({each.low:.2f}–{each.high:.2f})</title>"
            f'<text x="{labels - 10}" y="{y + 4}" text-anchor="end">{escape(_shortened(each.label))}</text>'
            f'<line class="whisker {kind}" x1="{px(each.low):.1f}" x2="{px(each.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot {kind}" cx="{px(each.median):.1f}" cy="{y}" r="4"/>'
            f'<text x="{width - 8}" y="{y + 4}" text-anchor="end">{each.median:.2f}{unit}</text></g>'
        )
    return f"<figure>{_svg(parts, title, width, height)}<figcaption>{escape(title)}</figcaption></figure>"


def _shortened(text: str, most: int = 50) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True)
class Dot:
    """A call in a roofline plot.

    Attributes:
        label: what is shown where the pointer rests.
        operations: floating-point operations for each byte of memory.
        speed: floating-point operations a second.
        series: the index of its colour.
        filled: ours are, peers are not.
    """

    label: str
    operations: float
    speed: float
    series: int
    filled: bool


def roofline(
    dots: Sequence[Dot], roofs: Mapping[str, float], bandwidth: float, series: Sequence[str], title: str
) -> str:
    """What calls reach of what the machine can do, by how often they use what they read; both axes logarithmic.

    Args:
        dots: the calls.
        roofs: operations a second at best, by what they are of.
        bandwidth: bytes a second.
        series: what the colours are of.
        title: what a screen reader says, and the caption.
    """
    width, height, left, right, top, bottom = 900, 460, 70, 24, 16, 46
    xs = [dot.operations for dot in dots] + [peak / bandwidth for peak in roofs.values()]
    ys = [dot.speed for dot in dots] + list(roofs.values())
    x_low, x_high, y_low, y_high = min(xs) / 2, max(xs) * 2, min(ys) / 2, max(ys) * 2

    def px(value: float) -> float:
        return left + (width - left - right) * math.log(value / x_low) / math.log(x_high / x_low)

    def py(value: float) -> float:
        return height - bottom - (height - top - bottom) * math.log(value / y_low) / math.log(y_high / y_low)

    parts = []
    for tick in log_ticks(y_low, y_high):
        y = py(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick / 1e9:g}</text>')
    for tick in log_ticks(x_low, x_high):
        parts.append(f'<text x="{px(tick):.1f}" y="{height - 26}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 7}" text-anchor="middle">operations a byte</text>'
        f'<text x="8" y="{top + 2}">GFLOP/s</text>'
    )
    for peak in roofs.values():
        ridge, start = peak / bandwidth, max(x_low, y_low / bandwidth)
        points = [(start, start * bandwidth), (ridge, peak), (x_high, peak)]
        line = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="roof" points="{line}"/>')
    for dot in dots:
        kind = "filled" if dot.filled else "hollow"
        parts.append(
            f'<circle class="dot {kind} k{dot.series % COLOURS}" cx="{px(dot.operations):.1f}" '
            f'cy="{py(dot.speed):.1f}" r="4.5"><title>{escape(dot.label)}</title></circle>'
        )
    for name, peak in roofs.items():
        place = f'x="{width - right}" y="{py(peak) - 5:.1f}" text-anchor="end"'
        parts.append(f'<text class="over" {place}>{escape(name)}, {peak / 1e9:.0f} GFLOP/s</text>')
    figure = _svg(parts, title, width, height)
    return f"<figure>{figure}{_legend(series)}<figcaption>{escape(title)}</figcaption></figure>"
