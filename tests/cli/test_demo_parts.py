import copy
import itertools
import statistics

import pytest
import torch
from torch import nn

from aigc_fast.cli.demo import stock
from aigc_fast.cli.demo.chart import bar_chart, line_chart, nice_ticks, smoothed
from aigc_fast.cli.demo.compare import Row, prove_parity
from aigc_fast.cli.demo.timing import Timing, interleaved
from aigc_fast.optimize import optimize


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
    assert line_chart([], {"a": []}, "empty").count("<svg") == 1
    assert bar_chart({"a": [0.0, 0.0], "b": [0.0, 1.0]}, ["0", "1"], "bars").count("<rect") == 4


def test_timing_tells_quartiles_of_every_way():
    calls = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.01)
    assert set(found) == {"a", "b"}
    assert calls.count("a") >= 8
    for timing in found.values():
        assert 0 <= timing.low <= timing.median <= timing.high


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
