import copy
import itertools
import re
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aigc_fast.bench import stock
from aigc_fast.cli.demo.chart import bar_chart, line_chart, nice_ticks, smoothed
from aigc_fast.cli.demo.compare import Row, prove_parity
from aigc_fast.optimize import optimize
from aigc_fast.runtime.timing import Timing, interleaved


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


@pytest.mark.parametrize("slowness", [1, 1000])
def test_timing_tells_quartiles_of_every_way(slowness, monkeypatch):
    """By a clock that the calls themselves advance, on a fast machine and on a slow one."""
    now, calls = 0.0, []

    def taking(name, milliseconds):
        def call():
            nonlocal now
            calls.append(name)
            now += 1e-3 * slowness * next(milliseconds)

        return call

    monkeypatch.setattr("aigc_fast.runtime.timing.time", SimpleNamespace(perf_counter=lambda: now))
    found = interleaved({"a": taking("a", itertools.repeat(1)), "b": taking("b", itertools.cycle([2, 4]))}, seconds=0.5)
    assert list(found) == ["a", "b"]
    assert (found["a"].low, found["a"].median, found["a"].high) == pytest.approx((slowness,) * 3)
    low, median, high = found["b"].low, found["b"].median, found["b"].high
    assert 2 * slowness - 1e-6 <= low < median < high <= 4 * slowness + 1e-6
    # To warm up, to guess the time, and in each round once more before the calls that count.
    assert calls.count("a") == (2 + 5 * (1 + 50) if slowness == 1 else 2 + 1 + 2)


def test_ratio_is_against_the_better_layout():
    row = Row("g", "n", Timing(4, 4, 4), Timing(3, 3, 3), Timing(2, 2, 2), 0, 0)
    assert row.ratio == 1.5
    assert Row("g", "n", Timing(4, 4, 4), None, Timing(2, 2, 2), 0, 0).ratio == 2


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    plain = stock.StockDCGAN()
    return plain, optimize(copy.deepcopy(plain)), torch.rand(4, 1, 28, 28) * 2 - 1, torch.randn(4, stock.LATENT)


def test_parity_holds_for_optimize(pair):
    found = prove_parity(*pair)
    assert found.error <= max(2 * found.stock_error, 2e-6)
    assert found.difference < 1e-5
    assert found.same_keys
    assert found.same_values
    assert found.loads_back


def test_parity_sees_a_wrong_layer_and_a_wrong_state(pair):
    plain, fast, images, z = pair
    wrong = copy.deepcopy(fast)
    with torch.no_grad():
        wrong.generator[4].weight[0, 0, 0, 0] += 0.1
    found = prove_parity(plain, wrong, images, z)
    assert found.error > 1e-4
    assert not found.same_values
    renamed = copy.deepcopy(fast)
    renamed.extra = nn.Linear(1, 1)
    found = prove_parity(plain, renamed, images, z)
    assert not found.same_keys
    assert not found.loads_back
