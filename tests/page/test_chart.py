"""Charts: what they hold, and that their ticks are where a reader looks for them."""

import itertools
import re
import statistics

import pytest

from aigc_fast.page.chart import (
    Dot,
    Interval,
    bar_chart,
    interval_chart,
    line_chart,
    log_ticks,
    nice_ticks,
    roofline,
    smoothed,
)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 250), (0.001, 0.0042), (-1e6, 1e6), (5, 5.0001)])
def test_ticks_are_round_even_and_inside(low, high):
    ticks = nice_ticks(low, high)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert 2 <= len(ticks) <= 9
    assert gaps == pytest.approx([gaps[0]] * len(gaps))
    margin = 1e-9 * (high - low) + 1e-12
    assert low - margin <= ticks[0]
    assert ticks[-1] <= high + margin


def test_ticks_of_nothing():
    assert nice_ticks(2, 2) == [2]
    assert nice_ticks(float("nan"), 1) != []


def test_smoothing_is_a_centred_mean():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    expected = [statistics.mean(values[max(0, i - 2) : i + 3]) for i in range(7)]
    assert smoothed(values, 2) == pytest.approx(expected)


def test_charts_hold_every_curve_and_leave_out_what_is_not_finite():
    chart = line_chart([1, 2, 3], {"a": [1, float("nan"), 2], "b & c": [0, 0, 0]}, "title <x>")
    assert chart.count("<polyline") == 4
    assert "nan" not in chart
    assert "b &amp; c" in chart
    assert "title &lt;x&gt;" in chart
    few = line_chart([1, 2], {"a": [0.0, 1.0]}, "few", smooth=False)
    assert len(set(re.findall(r'points="(.*?)"', few))) == 1
    assert line_chart([], {"a": []}, "empty").count("<svg") == 1
    assert bar_chart({"a": [0.0, 0.0], "b": [0.0, 1.0]}, ["0", "1"], "bars").count("<rect") == 4


def test_logarithmic_ticks_are_of_1_2_and_5_or_powers_where_there_are_many():
    assert log_ticks(0.4, 12) == pytest.approx([0.5, 1, 2, 5, 10])
    assert log_ticks(0.02, 3000) == pytest.approx([0.1, 1, 10, 100, 1000])


def test_intervals_lie_in_order_on_their_axis_and_gains_are_told_from_losses():
    chart = interval_chart([Interval("a <b>", 2, 1.5, 3), Interval("c", 0.5, 0.4, 0.6), Interval("d", 1, 1, 1)], "t")
    places = [float(x) for x in re.findall(r'<circle class="dot \w+" cx="([\d.]+)"', chart)]
    assert places[1] < places[2] < places[0]
    assert re.findall(r'<circle class="dot (\w+)"', chart) == ["win", "loss", "even"]
    assert "a &lt;b&gt;" in chart
    assert 'class="one"' in chart


def test_a_dot_at_a_roof_lies_on_it():
    peak, bandwidth = 100e9, 10e9
    chart = roofline([Dot("at the ridge", 10, peak, 0, True)], {"products": peak}, bandwidth, ["op"], "t")
    (points,) = re.findall(r'class="roof" points="([^"]+)"', chart)
    ridge = points.split()[1]
    assert re.search(r'cx="([\d.]+)" cy="([\d.]+)"', chart).groups() == tuple(ridge.split(","))
